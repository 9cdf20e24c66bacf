"""Record batches as Arrow IPC streams."""

import pyarrow as pa

from likewise.server.errors import DataLoss


def encode(batch: pa.RecordBatch) -> bytes:
    """An IPC stream of the batch's schema and the batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode(data: bytes) -> pa.RecordBatch:
    """The rows of an IPC stream as one batch; columns are views of `data` where the stream holds one batch.

    Raises:
        DataLoss: If the bytes are no IPC stream.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
            schema, batches = stream.schema, list(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataLoss(f"{len(data)} bytes are no Arrow IPC stream: {error}") from error
    if len(batches) == 1:
        return batches[0]
    return join(batches, schema)


def join(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """The rows of all batches, in order."""
    table = pa.Table.from_batches(batches, schema=schema).combine_chunks()
    whole = table.to_batches()
    return whole[0] if whole else pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
