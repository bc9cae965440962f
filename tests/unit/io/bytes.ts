import { MemoryFolder, memoryFile } from '../../../packages/core/src/io/files';
import {
  type NamedTensor,
  openSafetensors,
  type SafetensorsOptions,
  writeSafetensors,
} from '../../../packages/core/src/io/safetensors';

/** A file from a header, as JSON or as its very text, and its data's size. */
export function fileBytes(
  header: unknown,
  data: Uint8Array | number = 0,
): Uint8Array {
  const text = typeof header === 'string' ? header : JSON.stringify(header);
  const json =
    header instanceof Uint8Array ? header : new TextEncoder().encode(text);
  const rest = typeof data === 'number' ? new Uint8Array(data) : data;
  return withLength(json.length, json, rest);
}

/** The same with whatever header length the file claims. */
export function withLength(
  length: number | bigint,
  json: Uint8Array,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(8 + json.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(json, 8);
  bytes.set(data, 8 + json.length);
  return bytes;
}

export const open = (bytes: Uint8Array, options?: SafetensorsOptions) =>
  openSafetensors(memoryFile('test.safetensors', bytes), options);

export async function written(
  tensors: Iterable<NamedTensor>,
  metadata?: Record<string, string>,
): Promise<Uint8Array> {
  const folder = new MemoryFolder();
  await folder.write('file', (sink) =>
    writeSafetensors(sink, tensors, metadata),
  );
  const file = await folder.open('file');
  return file.read(0, file.size);
}
