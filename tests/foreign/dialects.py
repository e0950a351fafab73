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

from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions

__all__ = ["DIALECTS", "EXPECTED", "b64", "npy", "read"]

FLOATS = [[1.5, -2.0], [0.25, 3.0]]
EXPECTED = torch.tensor(FLOATS)


def read(text: str | bytes, directory: Path, **options: Any) -> Any:
    source = io.BytesIO(text.encode() if isinstance(text, str) else text)
    return read_foreign(source, directory, ForeignOptions(**options))[0]


def b64(array: Any) -> str:
    return base64.b64encode(array).decode()


def npy(array: Any) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return b64(file.getvalue())


RAW = np.array(FLOATS, "<f4").tobytes()
TYPED = '{"0":1.5,"1":-2,"2":0.25,"3":3}'
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
    "mark beside data": '{"__ndarray__":true,"data":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "mark beside base64": '{"__numpy__":true,"b64":"%s","dtype":"<f4","shape":[2,2]}' % b64(RAW),
    "mark with a name": '{"__tensor__":"torch","values":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "mark with a dtype": '{"__tensor__":"float32","data":[[1.5,-2],[0.25,3]]}',
    "mark around an object": '{"__tensor__":{"data":[[1.5,-2],[0.25,3]],"dtype":"float32"}}',
    "mark in a member": '{"is_tensor":true,"value":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "printed class": '{"class":"<class \'torch.Tensor\'>","tensor":[[1.5,-2],[0.25,3]]}',
    "class of Keras's kind": '{"class_name":"numpy.ndarray","list":[[1.5,-2],[0.25,3]]}',
    "type with a dtype in it": '{"type":"torch.FloatTensor","content":[[1.5,-2],[0.25,3]]}',
    "printed dtype": '{"_type":"ndarray","flat":[1.5,-2,0.25,3],"shape":"(2, 2)",'
    '"dtype":"<class \'numpy.float32\'>"}',
    "printed shape": '{"type":"tensor","data":[1.5,-2,0.25,3],"shape":"torch.Size([2, 2])"}',
    "array of JavaScript": '{"type":"Float32Array","data":%s,"shape":[2,2]}' % TYPED,
    "name beside": '{"name":"w","shape":[2,2],"dtype":"float32","data":[1.5,-2,0.25,3]}',
    "name and base64": '{"name":"w","shape":[2,2],"dtype":"F32","data":"%s"}' % b64(RAW),
    "dims": '{"dims":[2,2],"dtype":"float32","data":[1.5,-2,0.25,3]}',
    "dims of text": '{"dims":["2","2"],"dtype":"float32","data":[1.5,-2,0.25,3]}',
    "size": '{"size":[2,2],"dtype":"float32","values":[1.5,-2,0.25,3]}',
    "type for dtype": '{"type":"float32","shape":[2,2],"data":[1.5,-2,0.25,3]}',
    "shape alone": '{"shape":[2,2],"data":[1.5,-2,0.25,3]}',
    "typed array": '{"shape":[2,2],"data":%s}' % TYPED,
    "Buffer of Node": '{"dtype":"float32","shape":[2,2],"buffer":{"type":"Buffer","data":%s}}'
    % list(RAW),
    "list of bytes": '{"dtype":"float32","shape":[2,2],"data":{"type":"bytes","data":%s}}'
    % list(RAW),
    "BSON": '{"dtype":"float32","shape":[2,2],"data":{"$binary":{"base64":"%s","subType":"00"}}}'
    % b64(RAW),
    "base64 under another name": '{"dtype":"float32","shape":[2,2],"data_b64":"%s"}' % b64(RAW),
    "base64 without padding": '{"dtype":"float32","shape":[2,2],"raw":"%s"}' % b64(RAW).rstrip("="),
    "base64 in lines": '{"dtype":"float32","shape":[2,2],"base64":"%s"}'
    % b64(RAW).replace("AA", "AA\\r\\n").replace("QE", "QE\\n"),
    "base64 with escapes": '{"dtype":"float32","shape":[2,2],"base64":"%s"}'
    % b64(RAW).replace("+", "\\u002b").replace("=", "\\u003D"),
    "data URL": '{"dtype":"float32","shape":[2,2],"data":"data:application/octet-stream;base64,%s"}'
    % b64(RAW),
    "hex": '{"dtype":"float32","shape":[2,2],"data":"%s","encoding":"hex"}' % RAW.hex(),
    "base64 of gzip": '{"dtype":"float32","shape":[2,2],"encoding":"base64+gzip","data":"%s"}'
    % b64(gzip.compress(RAW)),
    "base64 of zlib, unsaid": '{"__tensor__":true,"dtype":"float32","shape":[2,2],"data":"%s"}'
    % b64(zlib.compress(RAW)),
    "npy": '{"__ndarray__":true,"data":"%s"}' % npy(np.array(FLOATS, "<f4")),
    "npy alone": '"%s"' % npy(np.array(FLOATS, "<f4")),
    "npy, column-major, big-endian": '{"__array__":true,"data":"%s"}'
    % npy(np.asfortranarray(np.array(FLOATS, ">f4"))),
    "flat, column-major": '{"data":[1.5,0.25,-2,3],"shape":[2,2],"dtype":"float32","order":"F"}',
    "bytes, column-major": '{"data":"%s","shape":[2,2],"dtype":"float32","order":"column-major"}'
    % b64(np.array(FLOATS, "<f4").T.tobytes()),
    "bokeh": '{"type":"ndarray","array":{"type":"bytes","data":"%s"},"shape":[2,2],'
    '"dtype":"float32","order":"little"}' % b64(gzip.compress(RAW)),
    "bokeh 2": '{"__ndarray__":"%s","dtype":"float32","shape":[2,2],"order":"little"}' % b64(RAW),
    "plotly": '{"dtype":"f4","bdata":"%s","shape":"2, 2"}' % b64(RAW),
    "msgpack-numpy": '{"nd":true,"type":"<f4","kind":"","shape":[2,2],"data":"%s"}' % b64(RAW),
    "ONNX": '{"dims":["2","2"],"dataType":1,"name":"w","rawData":"%s"}' % b64(RAW),
    "ONNX floats": '{"dims":["2","2"],"data_type":"FLOAT","float_data":[1.5,-2,0.25,3]}',
    "Keras": '{"class_name":"__tensor__","config":{"value":[[1.5,-2],[0.25,3]],"dtype":"float32"}}',
}
