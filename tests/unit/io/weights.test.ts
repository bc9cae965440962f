import { describe, expect, test } from 'vitest';
import { CheckpointError } from '../../../packages/core/src/errors';
import {
  type Folder,
  MemoryFolder,
  readText,
  type Sink,
  writeText,
} from '../../../packages/core/src/io/files';
import type { NamedTensor } from '../../../packages/core/src/io/safetensors';
import {
  openWeights,
  writeWeights,
} from '../../../packages/core/src/io/weights';
import { written } from './bytes';

const INDEX = 'model.safetensors.index.json';

const tensor = (name: string, value: number): NamedTensor => ({
  name,
  dtype: 'f32',
  shape: [2, 2],
  data: new Float32Array(4).fill(value),
});

const three = (value: number) =>
  ['a', 'b', 'c'].map((name) => tensor(name, value));

/** One tensor a shard. */
const sharded = { maxShardBytes: 16 };

async function values(folder: Folder): Promise<Record<string, number[]>> {
  const weights = await openWeights(folder);
  const all: Record<string, number[]> = {};
  for (const name of [...weights.tensors.keys()].sort()) {
    all[name] = [...(await weights.read(name)).data];
  }
  await weights.close();
  return all;
}

const filled = (value: number) =>
  Object.fromEntries(['a', 'b', 'c'].map((n) => [n, Array(4).fill(value)]));

const refused = (run: Promise<unknown>, rule: string) =>
  expect(run).rejects.toSatisfy(
    (error) => error instanceof CheckpointError && error.message.includes(rule),
  );

/** Shards of the given tensors, under an index that says what it is told to. */
async function shardFolder(
  shards: Record<string, NamedTensor[]>,
  weightMap: unknown,
): Promise<MemoryFolder> {
  const folder = new MemoryFolder();
  for (const [name, tensors] of Object.entries(shards)) {
    folder.set(name, await written(tensors));
  }
  await writeText(folder, INDEX, JSON.stringify({ weight_map: weightMap }));
  return folder;
}

describe('opening shards', () => {
  const shards = { one: [tensor('a', 1)], two: [tensor('b', 2)] };

  test('gives their tensors together', async () => {
    const folder = await shardFolder(shards, { a: 'one', b: 'two' });
    expect(await values(folder)).toEqual({
      a: [1, 1, 1, 1],
      b: [2, 2, 2, 2],
    });
  });

  test('neither file nor index', async () => {
    await refused(openWeights(new MemoryFolder()), 'got neither');
  });

  test('a shard is missing', async () => {
    const folder = await shardFolder(shards, { a: 'one', b: 'three' });
    await refused(openWeights(folder), 'three: no such file');
  });

  test('a tensor is in two shards', async () => {
    const doubled = { ...shards, two: [tensor('a', 1), tensor('b', 2)] };
    const folder = await shardFolder(doubled, { a: 'one', b: 'two' });
    await refused(openWeights(folder), 'tensor "a": must be in one shard');
  });

  test.each([
    '../one',
    '/etc/passwd',
    'sub/one',
    '..',
    '',
    '..\\one',
    'one\u0000',
  ])('a shard outside the folder: %j', async (name) => {
    const folder = await shardFolder(shards, { a: name, b: 'two' });
    await refused(openWeights(folder), 'must name an entry of the folder');
  });

  test('the index has a tensor that its shard has not', async () => {
    const folder = await shardFolder(shards, { a: 'one', b: 'two', c: 'two' });
    await refused(openWeights(folder), 'tensor "c": the index puts it in two');
    const swapped = await shardFolder(shards, { a: 'two', b: 'one' });
    await refused(openWeights(swapped), 'tensor "a": the index puts it in two');
  });

  test('a shard has a tensor that the index has not', async () => {
    const more = { ...shards, two: [tensor('b', 2), tensor('c', 3)] };
    const folder = await shardFolder(more, { a: 'one', b: 'two' });
    await refused(openWeights(folder), 'tensor "c": is in two, but not in');
  });

  test.each([
    '',
    '[]',
    '{}',
    '{"weight_map":[]}',
    '{"weight_map":{"a":1}}',
    '{"weight_map":{"a":"one","a":"two"}}',
    '{"weight_map":{},"weight_map":{}}',
    '{"weight_map":{}} x',
    `{"metadata":${'['.repeat(100_000)}`,
  ])('an index that breaks its form (%#)', async (text) => {
    const folder = await shardFolder(shards, {});
    await writeText(folder, INDEX, text);
    await refused(openWeights(folder), INDEX);
  });

  test('closes every shard when one is refused', async () => {
    const folder = await shardFolder(shards, { a: 'one', b: 'two' });
    folder.set('two', new Uint8Array(3));
    const open = folder.open.bind(folder);
    const files: string[] = [];
    folder.open = async (name) => {
      const file = await open(name);
      files.push(name);
      const close = async () => void files.splice(files.indexOf(name), 1);
      return { ...file, close };
    };
    await refused(openWeights(folder), 'at least 8 bytes');
    expect(files).toEqual([]);
  });

  test('a tensor that is not there', async () => {
    const folder = await shardFolder(shards, { a: 'one', b: 'two' });
    const weights = await openWeights(folder);
    await refused(weights.read('toString'), 'tensor "toString": is not there');
  });
});

describe('writing', () => {
  test('one file, with the metadata that transformers asks for', async () => {
    const folder = new MemoryFolder();
    await writeWeights(folder, three(1));
    expect(await folder.list()).toEqual(['model.safetensors']);
    expect(await values(folder)).toEqual(filled(1));
    const { metadata } = await openWeights(folder);
    expect([...metadata]).toEqual([['format', 'pt']]);
  });

  test('shards with the usual names, and an index', async () => {
    const folder = new MemoryFolder();
    await writeWeights(folder, three(1), { maxShardBytes: 32 });
    const names = [1, 2].map((i) => `model-0000${i}-of-00002.safetensors`);
    expect(await folder.list()).toEqual([...names, INDEX]);
    expect(JSON.parse(await readText(folder, INDEX))).toEqual({
      metadata: { total_size: 48 },
      weight_map: { a: names[0], b: names[0], c: names[1] },
    });
    expect(await values(folder)).toEqual(filled(1));
  });

  test('no tensors', async () => {
    const folder = new MemoryFolder();
    await writeWeights(folder, []);
    expect(await values(folder)).toEqual({});
  });

  const forms = { single: {}, sharded };
  const names = ['single', 'sharded'] as const;
  const pairs = names.flatMap((a) => names.map((b) => [a, b] as const));

  test.each(pairs)('%s replaced by %s, three times', async (before, after) => {
    const folder = new MemoryFolder();
    await writeWeights(folder, three(1), forms[before]);
    for (const value of [2, 3, 4]) {
      await writeWeights(folder, three(value), forms[after]);
      expect(await values(folder)).toEqual(filled(value));
      expect(await folder.list()).toHaveLength(after === 'single' ? 1 : 4);
    }
  });

  test.each(pairs)(
    '%s replaced by %s: each step leaves the old or the new',
    async (before, after) => {
      const seen = new Set<number>();
      for (let steps = 0; ; steps++) {
        const folder = new StoppingFolder();
        await writeWeights(folder, three(1), forms[before]);
        folder.left = steps;
        const ended = await writeWeights(folder, three(2), forms[after]).then(
          () => true,
          () => false,
        );
        folder.left = Number.POSITIVE_INFINITY;
        const got = await values(folder);
        const [value = Number.NaN] = got.a ?? [];
        expect([1, 2]).toContain(value);
        expect(got).toEqual(filled(value));
        seen.add(value);
        if (ended) break;
        // The next save must work on what the broken one left.
        await writeWeights(folder, three(3), forms[after]);
        expect(await values(folder)).toEqual(filled(3));
        expect(await folder.list()).toHaveLength(after === 'single' ? 1 : 4);
      }
      expect([...seen].sort()).toEqual([1, 2]);
    },
  );

  test('a disk that fills up gets the room of the new shards back', async () => {
    const folder = new MemoryFolder();
    await writeWeights(folder, three(1), sharded);
    const before = await folder.list();
    const failing = three(2);
    failing[2] = {
      ...tensor('c', 2),
      data: () => Promise.reject(new CheckpointError('c', undefined, 'full')),
    };
    await refused(writeWeights(folder, failing, sharded), 'full');
    expect(await folder.list()).toEqual(before);
    expect(await values(folder)).toEqual(filled(1));
  });
});

/** Does so many more changes, then none, as after a power cut. */
class StoppingFolder extends MemoryFolder {
  left = Number.POSITIVE_INFINITY;

  override async write(
    name: string,
    produce: (sink: Sink) => Promise<void>,
  ): Promise<void> {
    this.step();
    await super.write(name, produce);
  }

  override async remove(name: string): Promise<void> {
    this.step();
    await super.remove(name);
  }

  private step(): void {
    if (this.left-- <= 0) throw new Error('stopped');
  }
}
