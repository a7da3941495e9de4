"""CSV and JSON lines as tables. Their files declare no types, so each is read twice: once for its schema, once for
its rows. Types are Arrow's (whole numbers beyond 64 bits become doubles); JSON strings stay strings, also those that
look like dates. Both readers hold a few blocks in memory, whatever the file's size.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from raylog.api.sources.content import SourceFile, checked_schema, schema_difference
from raylog.api.sources.formats import Format
from raylog.errors import SourceError
from raylog.units import MIB, format_bytes

BLOCK_BYTES = 4 * MIB  # parsed at once; a CSV row longer than this is refused
LINE_BYTES_MAX = 256 * MIB  # of JSON
_BYTE_ORDER_MARK, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_CONVERSION = re.compile(r"In CSV column #(\d+): .*CSV conversion error to ", re.DOTALL)
_CSV_ERRORS = (pa.ArrowInvalid, UnicodeDecodeError, OSError)
_JSON_ROW = re.compile(r" in row (\d+)$")


def infer_schema(file: SourceFile, found: Format) -> pa.Schema:
    """The schema that all rows of `file` fit. Raises `SourceError` naming the first malformed row or line."""
    with file.open() as stream:
        if stream.read(2) in _UTF16:
            raise SourceError(f"{file.where} is UTF-16: expected UTF-8; convert it, for instance with iconv")
    schema = _infer_csv(file) if found is Format.CSV else _infer_json(file)
    return checked_schema(schema, file.where)


def common_schema(files: Sequence[SourceFile], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for all files, or `SourceError` naming two that differ in more than what inference leaves open."""
    common = schemas[0]
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        if common.names != schema.names:
            raise _mixed(files[0], file, schema_difference(common, schema))
        types = [_widest(one, other) for one, other in zip(common.types, schema.types, strict=True)]
        if None in types:
            raise _mixed(files[0], file, schema_difference(common, schema))
        common = pa.schema(list(zip(common.names, types, strict=True)))
    return common


def read(file: SourceFile, found: Format, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of `file` under `schema`, in order."""
    return _read_csv(file, schema) if found is Format.CSV else _read_json(file, schema)


def _mixed(first: SourceFile, other: SourceFile, difference: str) -> SourceError:
    return SourceError(
        f"mixed schemas: {first.where} and {other.where} differ: {difference}; "
        "put them as two artifacts, or as opaque files (as_files)"
    )


def _widest(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds both without loss of meaning, None when there is none."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        item = _widest(one.value_type, other.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _widest_struct(one, other)
    return None


def _widest_struct(one: pa.StructType, other: pa.StructType) -> pa.DataType | None:
    columns = {column.name: column.type for column in one}
    for column in other:
        widest = _widest(columns.get(column.name, pa.null()), column.type)
        if widest is None:
            return None
        columns[column.name] = widest
    return pa.struct(list(columns.items()))


# CSV


def _open_csv(stream: io.BufferedIOBase, types: dict[str, pa.DataType], threads: bool) -> pa_csv.CSVStreamingReader:
    return pa_csv.open_csv(
        stream,
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=threads),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=types),
    )


def _infer_csv(file: SourceFile) -> pa.Schema:
    """Arrow infers from the first block and fails where a later one does not fit: then that column's type is made
    wider and the file read again, at most three times per column and in practice hardly ever."""
    types: dict[str, pa.DataType] = {}
    schema: pa.Schema | None = None
    while True:
        try:
            with file.open() as stream, _open_csv(stream, types, threads=True) as reader:
                schema = checked_schema(reader.schema, file.where)
                for _ in reader:
                    pass
                return schema
        except _CSV_ERRORS as error:
            conversion = _CONVERSION.search(str(error))
            if conversion is None or schema is None:
                raise _csv_error(file, types, error) from error
            name = schema.names[int(conversion[1])]
            types[name] = _looser(types.get(name, schema.field(name).type))


def _looser(given: pa.DataType) -> pa.DataType:
    if pa.types.is_null(given):
        return pa.int64()
    if pa.types.is_int64(given):
        return pa.float64()
    return pa.binary() if pa.types.is_string(given) else pa.string()


def _read_csv(file: SourceFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    types = dict(zip(schema.names, schema.types, strict=True))
    try:
        with file.open() as stream, _open_csv(stream, types, threads=True) as reader:
            yield from reader
    except _CSV_ERRORS as error:
        raise _csv_error(file, types, error) from error


def _csv_error(file: SourceFile, types: dict[str, pa.DataType], error: Exception) -> SourceError:
    """The first malformed row by number: only the reader without threads counts rows, so the file is read again."""
    file.check()
    message = str(error)
    try:
        with file.open() as stream, _open_csv(stream, types, threads=False) as reader:
            for _ in reader:
                pass
    except _CSV_ERRORS as numbered:
        message = str(numbered)
    if "straddling" in message or "cannot infer number of columns" in message:
        message = f"a row is longer than {format_bytes(BLOCK_BYTES)}, or a quotation mark is never closed"
    return SourceError(
        f"{file.where} cannot be read as CSV: {message.removeprefix('CSV parse error: ')} (the header is row 1, blank "
        "lines do not count); correct the row, or put the file as it is (as_files)"
    )


# JSON lines


def _infer_json(file: SourceFile) -> pa.Schema:
    columns: pa.DataType = pa.struct([])
    for line, block in _line_blocks(file):
        table = _parse_json(file, line, block, None)
        found = pa.struct([(column.name, _dates_as_text(column.type)) for column in table.schema])
        widest = _widest_struct(columns, found)
        if widest is None:
            difference = schema_difference(pa.schema(list(columns)), pa.schema(list(found)))
            raise SourceError(
                f"{file.where} changes its types from line {line} on: {difference}; make the types equal, or put the "
                "file as it is (as_files)"
            )
        columns = widest
    return pa.schema(list(columns))


def _dates_as_text(given: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(given):
        return pa.string()
    if pa.types.is_list(given):
        return pa.list_(_dates_as_text(given.value_type))
    if pa.types.is_struct(given):
        return pa.struct([(column.name, _dates_as_text(column.type)) for column in given])
    return given


def _read_json(file: SourceFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for line, block in _line_blocks(file):
        yield from _parse_json(file, line, block, schema).combine_chunks().to_batches()


def _parse_json(file: SourceFile, line: int, block: bytes, schema: pa.Schema | None) -> pa.Table:
    """The lines of `block`, whose first is number `line` of the file; inferred when `schema` is None."""
    try:
        block.decode()  # Arrow would take what is not UTF-8 into its strings
        table = pa_json.read_json(
            pa.BufferReader(block),
            read_options=pa_json.ReadOptions(block_size=len(block) + 1, use_threads=False),
            parse_options=pa_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "error"
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        file.check()
        raise _json_error(file, line, block, str(error)) from error
    if schema is None and table.num_rows != sum(not text.isspace() for text in block.split(b"\n") if text):
        _refuse_other_than_one_object(file, line, block)
    return table


def _line_blocks(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with the number of its first line; blocks of blank lines are left out."""
    line, rest = 1, b""
    for piece in file.pieces(BLOCK_BYTES):
        data = rest + piece if rest else piece
        cut = data.rfind(b"\n") + 1
        if not cut and len(data) > LINE_BYTES_MAX:
            raise SourceError(f"{file.where}: line {line} is longer than {format_bytes(LINE_BYTES_MAX)}; cut it up")
        block, rest = data[:cut], data[cut:]
        if line == 1:
            block = block.removeprefix(_BYTE_ORDER_MARK)
        if not block.isspace() and block:
            yield line, block
        line += data.count(b"\n")
    if line == 1:
        rest = rest.removeprefix(_BYTE_ORDER_MARK)
    if rest.strip():
        yield line, rest


def _json_error(file: SourceFile, line: int, block: bytes, message: str) -> SourceError:
    _refuse_other_than_one_object(file, line, block)
    row = _JSON_ROW.search(message)
    numbers = [line + index for index, text in enumerate(block.split(b"\n")) if text.strip()]
    at = f"line {numbers[int(row[1])]}" if row and int(row[1]) < len(numbers) else f"from line {line} on"
    words = _JSON_ROW.sub("", message).removeprefix("JSON parse error: ")
    return SourceError(f"{file.where}, {at}: {words}; make the lines' types equal, or put the file as it is (as_files)")


def _refuse_other_than_one_object(file: SourceFile, line: int, block: bytes) -> None:
    for number, text in enumerate(block.split(b"\n"), line):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{file.where}, line {number}: expected one JSON object per line: {error}") from error
        if not isinstance(value, dict):
            raise SourceError(
                f"{file.where}, line {number}: expected one JSON object per line, got {type(value).__name__}"
            )
