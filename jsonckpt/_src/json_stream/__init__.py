"""JSON text of any size, read as a stream: long arrays and strings go to a file. Below foreign."""
