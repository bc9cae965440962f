import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bytesPerElement } from '../../packages/core/src/dtype';
import { CheckpointError } from '../../packages/core/src/errors';
import {
  memoryFile,
  type ReadableFile,
} from '../../packages/core/src/io/files';
import { openSafetensors } from '../../packages/core/src/io/safetensors';
import { cpuTime } from '../unit/cpu-time';
import { written } from '../unit/io/bytes';
import { metadata, mutations, tensors } from './safetensors-arbitraries';

const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView) =>
  new Uint8Array(buffer, byteOffset, byteLength);

/** The header as JSON.parse and TextDecoder see it. */
function headerOf(bytes: Uint8Array): Record<string, unknown> {
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  return JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
}

test('what is written is read, bit for bit', async () => {
  await fc.assert(
    fc.asyncProperty(tensors, metadata, async (tensors, metadata) => {
      const bytes = await written(tensors, metadata);
      const opened = await openSafetensors(memoryFile('a', bytes));
      expect(Object.fromEntries(opened.metadata)).toEqual({ ...metadata });
      expect(opened.tensors.size).toBe(tensors.length);
      for (const { name, dtype, shape, data } of tensors) {
        const got = await opened.read(name);
        expect([got.dtype, got.shape]).toEqual([dtype, shape]);
        if (typeof data === 'function') throw new Error('internal: data');
        expect(got.data.constructor).toBe(data.constructor);
        expect(bytesOf(got.data)).toEqual(bytesOf(data));
      }
    }),
    { numRuns: 500 },
  );
});

test('every tensor lies aligned, in an order of its own', async () => {
  await fc.assert(
    fc.asyncProperty(tensors, async (tensors) => {
      const bytes = await written(tensors);
      expect(await written([...tensors].reverse())).toEqual(bytes);
      const opened = await openSafetensors(memoryFile('a', bytes));
      const data = bytes.length - dataBytes(opened.tensors.values());
      expect(data % 8).toBe(0);
      for (const { name, dtype } of tensors) {
        const { begin } = opened.tensors.get(name)!;
        expect((data + begin) % bytesPerElement[dtype]).toBe(0);
      }
    }),
    { numRuns: 200 },
  );
});

const dataBytes = (entries: Iterable<{ end: number }>) =>
  Math.max(0, ...[...entries].map(({ end }) => end));

describe('10,000 broken files', () => {
  test('each gives a result or a CheckpointError, soon and in little memory', async () => {
    let opened = 0;
    let refused = 0;
    const property = fc.asyncProperty(
      tensors,
      metadata,
      mutations,
      async (tensors, metadata, mutate) => {
        const bytes = mutate(await written(tensors, metadata));
        const start = cpuTime();
        if (await survives(bytes)) opened++;
        else refused++;
        expect(cpuTime() - start).toBeLessThan(1000);
      },
    );
    await fc.assert(property, { numRuns: 10_000 });
    // Both outcomes must be common, or the mutations have lost their edge.
    expect(opened).toBeGreaterThan(500);
    expect(refused).toBeGreaterThan(500);
  }, 120_000);

  test('bytes without any form', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 64 }), async (bytes) => {
        await survives(bytes);
      }),
      { numRuns: 1000 },
    );
  });
});

/** Whether a file opens. One that does must agree with its own header. */
async function survives(bytes: Uint8Array): Promise<boolean> {
  const { file, asked } = counting(memoryFile('broken', bytes));
  const opened = await openSafetensors(file).catch(expected);
  expect(asked()).toBeLessThanOrEqual(bytes.length);
  if (!opened) return false;
  const header = headerOf(bytes);
  const names = [...opened.tensors.keys(), '__metadata__'];
  expect(Object.keys(header).every((name) => names.includes(name))).toBe(true);
  for (const [name, entry] of opened.tensors) {
    expect(Object.getOwnPropertyDescriptor(header, name)?.value).toMatchObject({
      dtype: entry.dtype,
      shape: entry.shape,
      data_offsets: [entry.begin, entry.end],
    });
    const tensor = await opened.read(name).catch(expected);
    const count = entry.shape.reduce((a, b) => a * b, 1);
    if (tensor) expect(tensor.data).toHaveLength(count);
  }
  // Header and tensors: each byte of the file is asked for once.
  expect(asked()).toBeLessThanOrEqual(bytes.length);
  return true;
}

function expected(error: unknown): undefined {
  if (!(error instanceof CheckpointError)) throw error;
}

/** Counts the bytes that are asked of a file, had or not. */
function counting(file: ReadableFile) {
  let bytes = 0;
  const read = (offset: number, length: number) => {
    bytes += length;
    return file.read(offset, length);
  };
  return { file: { ...file, read }, asked: () => bytes };
}

describe('memory stays below twice the file', () => {
  const size = 64 * 2 ** 20;
  const padded = (header: string) => {
    const json = new TextEncoder().encode(header);
    const bytes = new Uint8Array(8 + json.length + size);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
    bytes.set(json, 8);
    return bytes;
  };
  const floats = size / 4;
  const integers = size / 8;

  test.each([
    [
      'F32',
      `"a":{"dtype":"F32","shape":[${floats}],"data_offsets":[0,${size}]}`,
    ],
    [
      'I64',
      `"a":{"dtype":"I64","shape":[${integers}],"data_offsets":[0,${size}]}`,
    ],
  ])('with all of a 64 MiB file of %s read', async (_, member) => {
    const bytes = padded(`{${member}}`);
    const before = used();
    const opened = await openSafetensors(memoryFile('a', bytes));
    const { data } = await opened.read('a');
    expect(used() - before).toBeLessThan(2 * bytes.length);
    expect(data.every((value) => value === 0)).toBe(true);
  });
});

function used(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}
