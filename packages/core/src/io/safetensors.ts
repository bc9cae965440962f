import { bytesPerElement, type DType, type HostArray } from '../dtype';
import { CheckpointError } from '../errors';
import { decodeText, type ReadableFile, type Sink } from './files';
import { JsonReader } from './strict-json';

/**
 * The safetensors format: eight bytes with the header's length (u64,
 * little-endian), a JSON header, then the tensors' bytes without gaps.
 * Source: https://github.com/huggingface/safetensors, `tensor.rs`. Typed
 * arrays are little-endian, as the format is, on every engine that has a GPU.
 */

/** Bits of an element, for every type that a file may hold. */
const bitsPerElement = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
};

export type SafetensorsDType = keyof typeof bitsPerElement;

const isDType = (name: string): name is SafetensorsDType =>
  Object.hasOwn(bitsPerElement, name);

/** What a header says of a tensor. `begin` and `end` count from the data on. */
export interface TensorEntry {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** A tensor's values on the host. */
export interface HostTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: HostArray;
}

/** Named tensors on disk: one file, or a folder of shards. */
export interface Weights {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
  /**
   * Reads one tensor. `I64` becomes `i32`.
   * @throws CheckpointError when there is none of that name, its type has no
   * counterpart here, an `I64` does not fit, or the file has changed.
   */
  read(name: string): Promise<HostTensor>;
  close(): Promise<void>;
}

export interface SafetensorsOptions {
  /** Longest header to accept, in bytes; at most 100,000,000. */
  maxHeaderBytes?: number;
}

const LENGTH_BYTES = 8;
const MAX_HEADER_BYTES = 100_000_000;
/** Holds about 100,000 tensors, and is scanned in a fraction of a second. */
const DEFAULT_HEADER_BYTES = 8 * 2 ** 20;
const METADATA = '__metadata__';

/**
 * Reads and checks a file's header; `file` is then the result's to close.
 * @throws CheckpointError when the file breaks any rule of the format.
 */
export async function openSafetensors(
  file: ReadableFile,
  options: SafetensorsOptions = {},
): Promise<Weights> {
  const limit = Math.min(
    options.maxHeaderBytes ?? DEFAULT_HEADER_BYTES,
    MAX_HEADER_BYTES,
  );
  const length = await readHeaderLength(file, limit);
  const bytes = await file.read(LENGTH_BYTES, length);
  const header = parseHeader(file.path, decodeText(file.path, bytes));
  const dataStart = LENGTH_BYTES + length;
  checkLayout(file.path, header.tensors, file.size - dataStart);
  return {
    path: file.path,
    ...header,
    read: async (name) => {
      const entry = header.tensors.get(name);
      if (!entry) throw new CheckpointError(file.path, name, 'is not there');
      return readTensor(file, dataStart, name, entry);
    },
    close: () => file.close(),
  };
}

async function readHeaderLength(
  file: ReadableFile,
  limit: number,
): Promise<number> {
  const fail = (rule: string) =>
    new CheckpointError(file.path, undefined, rule);
  if (file.size < LENGTH_BYTES) {
    throw fail(`must have at least 8 bytes, got ${file.size}`);
  }
  const { buffer, byteOffset } = await file.read(0, LENGTH_BYTES);
  const length = new DataView(buffer, byteOffset).getBigUint64(0, true);
  if (length > BigInt(limit)) {
    throw fail(`the header must have at most ${limit} bytes, got ${length}`);
  }
  const room = file.size - LENGTH_BYTES;
  if (length > BigInt(room)) {
    throw fail(
      `the header must end in the file, got ${length} of ${room} bytes`,
    );
  }
  return Number(length);
}

type Header = Pick<Weights, 'tensors' | 'metadata'>;

function parseHeader(path: string, text: string): Header {
  const tensors = new Map<string, TensorEntry>();
  const metadata = new Map<string, string>();
  let tensor: string | undefined;
  const fail = (rule: string) =>
    new CheckpointError(path, tensor, `header: ${rule}`);
  // JSON allows white space first, the format does not.
  if (!text.startsWith('{')) throw fail('must start with "{"');
  const json = new JsonReader(text, fail);
  json.object((key) => {
    tensor = key;
    if (key === METADATA) {
      json.object((name) => metadata.set(name, json.string()));
    } else {
      tensors.set(key, readEntry(json, fail));
    }
    tensor = undefined;
  });
  json.end();
  return { tensors, metadata };
}

function readEntry(
  json: JsonReader,
  fail: (rule: string) => Error,
): TensorEntry {
  let dtype: string | undefined;
  let shape: number[] | undefined;
  let offsets: number[] | undefined;
  json.object((field) => {
    if (field === 'dtype') dtype = json.string();
    else if (field === 'shape') shape = naturals(json);
    else if (field === 'data_offsets') offsets = naturals(json);
    else json.skip();
  });
  if (dtype === undefined || !shape || !offsets) {
    throw fail('needs "dtype", "shape" and "data_offsets"');
  }
  if (!isDType(dtype)) {
    throw fail(
      `dtype must be one of the format's, got ${JSON.stringify(dtype.slice(0, 80))}`,
    );
  }
  const [begin, end] = offsets;
  if (begin === undefined || end === undefined || offsets.length !== 2) {
    throw fail(`data_offsets must be two, got ${offsets.length}`);
  }
  const size = byteSize(dtype, shape, fail);
  if (end - begin !== size) {
    throw fail(
      `data_offsets must span the ${size} bytes of ${describe(dtype, shape)}, got [${begin}, ${end}]`,
    );
  }
  return { dtype, shape, begin, end };
}

function naturals(json: JsonReader): number[] {
  const numbers: number[] = [];
  json.array(() => numbers.push(json.natural()));
  return numbers;
}

function byteSize(
  dtype: SafetensorsDType,
  shape: readonly number[],
  fail: (rule: string) => Error,
): number {
  let bits = bitsPerElement[dtype];
  for (const width of shape) {
    bits *= width;
    if (!Number.isSafeInteger(bits)) {
      throw fail(
        `must have fewer than 2^53 bits, got ${describe(dtype, shape)}`,
      );
    }
  }
  if (bits % 8 !== 0) {
    throw fail(`must fill whole bytes, got ${describe(dtype, shape)}`);
  }
  return bits / 8;
}

/** The tensors must cover the data from its first byte to its last, once. */
function checkLayout(
  path: string,
  tensors: ReadonlyMap<string, TensorEntry>,
  dataBytes: number,
): void {
  const inOrder = [...tensors].sort(
    ([, a], [, b]) => a.begin - b.begin || a.end - b.end,
  );
  let at = 0;
  for (const [name, { begin, end }] of inOrder) {
    if (begin !== at) {
      const flaw = begin > at ? 'a hole' : 'an overlap';
      throw new CheckpointError(
        path,
        name,
        `data_offsets must start at byte ${at}, without ${flaw}, got [${begin}, ${end}]`,
      );
    }
    at = end;
  }
  if (at !== dataBytes) {
    throw new CheckpointError(
      path,
      undefined,
      `the tensors must fill the file, got ${at} bytes of tensors and ${dataBytes} of data`,
    );
  }
}

const hostTypes: Partial<Record<SafetensorsDType, DType>> = {
  F64: 'f64',
  F32: 'f32',
  F16: 'f16',
  BF16: 'bf16',
  I32: 'i32',
  I64: 'i32',
};

async function readTensor(
  file: ReadableFile,
  dataStart: number,
  name: string,
  { dtype, shape, begin, end }: TensorEntry,
): Promise<HostTensor> {
  const host = hostTypes[dtype];
  if (!host) {
    const known = Object.keys(hostTypes).join(', ');
    throw new CheckpointError(
      file.path,
      name,
      `values must be of ${known}, got ${dtype}; convert the file`,
    );
  }
  const bytes = await file.read(dataStart + begin, end - begin);
  if (dtype === 'I64') {
    return { dtype: host, shape, data: narrowI64(file.path, name, bytes) };
  }
  return { dtype: host, shape, data: hostArray(host, bytes) };
}

/** The bytes as elements, without a copy where their alignment allows. */
function hostArray(dtype: DType, bytes: Uint8Array): HostArray {
  const width = bytesPerElement[dtype];
  const { buffer, byteOffset } =
    bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  const length = bytes.length / width;
  switch (dtype) {
    case 'f64':
      return new Float64Array(buffer, byteOffset, length);
    case 'f32':
      return new Float32Array(buffer, byteOffset, length);
    case 'i32':
      return new Int32Array(buffer, byteOffset, length);
    default:
      return new Uint16Array(buffer, byteOffset, length);
  }
}

function narrowI64(path: string, name: string, bytes: Uint8Array): Int32Array {
  const halves = hostArray('i32', bytes);
  const values = new Int32Array(halves.length / 2);
  for (let i = 0; i < values.length; i++) {
    const low = halves[2 * i] ?? 0;
    const high = halves[2 * i + 1] ?? 0;
    // A value fits when its upper half only repeats the lower half's sign.
    if (high !== low >> 31) {
      const value = (BigInt(high) << 32n) | BigInt(low >>> 0);
      throw new CheckpointError(
        path,
        name,
        `I64 values must fit in 32 bits, got ${value} at index ${i}`,
      );
    }
    values[i] = low;
  }
  return values;
}

/** A tensor to write. A function is called when its bytes are due. */
export interface NamedTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: HostArray | (() => HostArray | Promise<HostArray>);
}

/** The format's name of each type, in the order in which tensors are laid. */
const fileTypes: Record<DType, SafetensorsDType> = {
  f64: 'F64',
  f32: 'F32',
  i32: 'I32',
  bf16: 'BF16',
  f16: 'F16',
};
const layOrder = Object.keys(fileTypes);

/** Bytes that a tensor takes in a file. */
export const tensorBytes = ({ dtype, shape }: NamedTensor): number =>
  shape.reduce((product, width) => product * width, bytesPerElement[dtype]);

/**
 * Writes a file whose bytes depend only on the tensors and the metadata's
 * order, and are the reference implementation's: wide types first, then by
 * name, so that every tensor is aligned. One tensor is in memory at a time.
 * @throws CheckpointError when a name is there twice or reserved, or a
 * tensor's data are not of its type and shape.
 */
export async function writeSafetensors(
  sink: Sink,
  tensors: Iterable<NamedTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const laid = [...tensors].sort(
    (a, b) =>
      layOrder.indexOf(a.dtype) - layOrder.indexOf(b.dtype) ||
      compareText(a.name, b.name),
  );
  await sink.write(encodeHeader(laid, metadata));
  for (const tensor of laid) {
    const { data } = tensor;
    const values = typeof data === 'function' ? await data() : data;
    checkData(tensor, values);
    const { buffer, byteOffset, byteLength } = values;
    await sink.write(new Uint8Array(buffer, byteOffset, byteLength));
  }
}

function encodeHeader(
  laid: readonly NamedTensor[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const members: string[] = [];
  if (Object.keys(metadata).length > 0) {
    members.push(`"${METADATA}":${JSON.stringify(metadata)}`);
  }
  const names = new Set<string>([METADATA]);
  let at = 0;
  for (const tensor of laid) {
    if (names.has(tensor.name)) {
      throw new CheckpointError(
        'writeSafetensors',
        tensor.name,
        'a name must be there once and not be reserved',
      );
    }
    names.add(tensor.name);
    const { dtype, shape } = tensor;
    const end = at + tensorBytes(tensor);
    const entry = { dtype: fileTypes[dtype], shape, data_offsets: [at, end] };
    members.push(`${JSON.stringify(tensor.name)}:${JSON.stringify(entry)}`);
    at = end;
  }
  return frame(new TextEncoder().encode(`{${members.join(',')}}`));
}

/** Puts the length before a header, and spaces after it to a multiple of 8. */
function frame(json: Uint8Array): Uint8Array {
  const length = Math.ceil(json.length / 8) * 8;
  const bytes = new Uint8Array(LENGTH_BYTES + length).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(json, LENGTH_BYTES);
  return bytes;
}

function checkData(tensor: NamedTensor, values: HostArray): void {
  const wanted = hostArray(tensor.dtype, new Uint8Array(0)).constructor;
  const bytes = tensorBytes(tensor);
  if (values.constructor === wanted && values.byteLength === bytes) return;
  const { name, dtype, shape } = tensor;
  throw new CheckpointError(
    'writeSafetensors',
    name,
    `data must be ${wanted.name} of ${bytes} bytes for ${describe(dtype, shape)}, got ${values.constructor.name} of ${values.byteLength}`,
  );
}

/** By UTF-16 units: the same on every machine, unlike `localeCompare`. */
const compareText = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);

/** `F32 [2, 3]` for an error message, cut where the shape is long. */
function describe(dtype: string, shape: readonly number[]): string {
  const more = shape.length > 8 ? ', …' : '';
  return `${dtype} [${shape.slice(0, 8).join(', ')}${more}]`;
}
