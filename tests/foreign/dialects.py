"""JSON that other programs write: one tensor in each dialect, and a reader of text."""

# ruff: noqa: UP031 - JSON is full of braces, so str.format and f-strings would be unreadable.

from __future__ import annotations

import base64
import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jsonckpt._src.foreign.read_json import ForeignOptions, read_foreign

__all__ = ["DIALECTS", "EXPECTED", "b64", "read"]

FLOATS = [[1.5, -2.0], [0.25, 3.0]]
EXPECTED = torch.tensor(FLOATS)


def read(text: str | bytes, directory: Path, **options: Any) -> Any:
    source = io.BytesIO(text.encode() if isinstance(text, str) else text)
    return read_foreign(source, directory, ForeignOptions(**options))[0]


def b64(array: Any) -> str:
    return base64.b64encode(array).decode()


RAW = np.array(FLOATS, "<f4").tobytes()
DIALECTS = {
    "the guide": '{"data":[[1.5,-2.0],[0.25,3.0]],"shape":[2,2],"dtype":"torch.float32"}',
    "flat data": '{"data":[1.5,-2.0,0.25,3.0],"shape":[2,2],"dtype":"float32"}',
    "dtype first": '{"dtype":"float32","shape":[2,2],"data":[[1.5,-2.0],[0.25,3.0]]}',
    "no shape": '{"data":[[1.5,-2.0],[0.25,3.0]],"dtype":"torch.float32"}',
    "values": '{"values":[[1.5,-2.0],[0.25,3.0]],"shape":[2,2],"dtype":"torch.float32"}',
    "__tensor__ list": '{"__tensor__":true,"dtype":"torch.float32","data":[[1.5,-2.0],[0.25,3]]}',
    "__tensor__ base64": '{"__tensor__":true,"dtype":"<f4","shape":[2,2],"data":"%s"}' % b64(RAW),
    "_type": '{"_type":"tensor","data":[[1.5,-2],[0.25,3]],"dtype":"float32","shape":[2,2]}',
    "__type__": '{"__type__":"tensor","values":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "__type__ ndarray": '{"__type__":"ndarray","data":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "type": '{"type":"torch.Tensor","data":[[1.5,-2],[0.25,3]],"dtype":"torch.float32"}',
    "__torch_tensor__": '{"__torch_tensor__":true,"data":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "__torch_tensor__ list": '{"__torch_tensor__":[[1.5,-2.0],[0.25,3.0]],"dtype":"float32"}',
    "__torch_tensor__ base64": '{"__torch_tensor__":"%s","dtype":"float32","shape":[2,2]}'
    % b64(RAW),
    "monty": '{"@module":"torch","@class":"Tensor","dtype":"torch.FloatTensor","size":[2,2],'
    '"data":[[1.5,-2.0],[0.25,3.0]]}',
    "monty numpy": '{"@module":"numpy","@class":"array","dtype":"float32","data":[[1.5,-2.0],'
    "[0.25,3.0]]}",
    "json-tricks": '{"__ndarray__":[[1.5,-2.0],[0.25,3.0]],"dtype":"float32","shape":[2,2],'
    '"Corder":true}',
    "json-tricks compact": '{"__ndarray__":"b64:%s","dtype":"float32","shape":[2,2]}' % b64(RAW),
    "json-tricks big-endian": '{"__ndarray__":"b64:P8AAAMAAAAA+gAAAQEAAAA==","dtype":"float32",'
    '"shape":[2,2],"Corder":true,"endian":"big"}',
    "json-tricks gzip": '{"__ndarray__":"b64.gz:%s","dtype":"float32","shape":[2,2]}'
    % b64(gzip.compress(RAW)),
    "json-numpy": '{"__numpy__":"AADAPwAAAMAAAIA+AABAQA==","dtype":"<f4","shape":[2,2]}',
    "json-numpy big-endian": '{"__numpy__":"P8AAAMAAAAA+gAAAQEAAAA==","dtype":">f4","shape":[2,2]}',
    "jsonpickle": '{"py/object":"numpy.ndarray","dtype":"float32",'
    '"values":[[1.5,-2.0],[0.25,3.0]]}',
    "jsonpickle binary": '{"py/object":"numpy.ndarray","values":"%s","shape":[2,2],'
    '"dtype":"float32","byteorder":"<"}' % b64(zlib.compress(RAW)),
    "jsonpickle column-major": '{"py/object":"numpy.ndarray","values":"%s","shape":[2,2],'
    '"dtype":"float32","byteorder":"<","order":"F"}'
    % b64(zlib.compress(np.array(FLOATS, "<f4").T.tobytes())),
}
