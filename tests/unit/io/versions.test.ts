import { describe, expect, test } from 'vitest';
import {
  ArgumentError,
  CheckpointError,
} from '../../../packages/core/src/errors';
import {
  MemoryFolder,
  readText,
  writeText,
} from '../../../packages/core/src/io/files';
import {
  openLatest,
  saveVersion,
} from '../../../packages/core/src/io/versions';

const save = (folder: MemoryFolder, step: number, text = `${step}`) =>
  saveVersion(folder, step, async (version) => {
    await writeText(version, 'a', text);
    await writeText(version, 'b', text);
  });

const latest = async (folder: MemoryFolder) =>
  readText(await openLatest(folder), 'b');

test('the last save is the one that loads, and the only one kept', async () => {
  const folder = new MemoryFolder();
  for (const step of [1, 20, 3]) {
    await save(folder, step);
    expect(await latest(folder)).toBe(`${step}`);
  }
  expect(await folder.list()).toEqual(['latest', 'step-00000003']);
});

test('a step may be saved again and again', async () => {
  const folder = new MemoryFolder();
  for (const text of ['x', 'y', 'z']) {
    await save(folder, 7, text);
    expect(await latest(folder)).toBe(text);
    expect(await folder.list()).toHaveLength(2);
  }
});

test('a save that fails leaves the old one alone', async () => {
  const folder = new MemoryFolder();
  await save(folder, 1);
  const failed = saveVersion(folder, 2, async (version) => {
    await writeText(version, 'a', 'half');
    throw new CheckpointError('disk', undefined, 'full');
  });
  await expect(failed).rejects.toThrow('disk: full');
  expect(await folder.list()).toEqual(['latest', 'step-00000001']);
  expect(await latest(folder)).toBe('1');
});

test('an unfinished save is not loaded, and goes with the next one', async () => {
  const folder = new MemoryFolder();
  await save(folder, 1);
  await writeText(await folder.subfolder('step-00000002'), 'a', 'half');
  await writeText(await folder.subfolder('step-00000003'), 'stray', 'x');
  expect(await latest(folder)).toBe('1');
  await save(folder, 3);
  expect(await folder.list()).toEqual(['latest', 'step-00000003']);
  expect(await (await openLatest(folder)).list()).toEqual(['a', 'b']);
});

test('what is not ours stays', async () => {
  const folder = new MemoryFolder();
  await folder.subfolder('step-one');
  await writeText(folder, 'notes.txt', 'x');
  await save(folder, 1);
  await save(folder, 2);
  expect(await folder.list()).toEqual([
    'latest',
    'notes.txt',
    'step-00000002',
    'step-one',
  ]);
});

describe('refuses', () => {
  test('a folder without checkpoint', async () => {
    const folder = new MemoryFolder('runs');
    await expect(openLatest(folder)).rejects.toThrow(
      'runs: holds no checkpoint',
    );
  });

  test.each(['', '..', '/', 'step-1', 'step-00000001/x', 'step-00000001\nx'])(
    'a pointer to elsewhere: %j',
    async (text) => {
      const folder = new MemoryFolder();
      await save(folder, 1);
      await writeText(folder, 'latest', text);
      await expect(openLatest(folder)).rejects.toThrow(CheckpointError);
      await expect(save(folder, 2)).rejects.toThrow('must name a checkpoint');
      expect(await folder.has('step-00000001')).toBe(true);
    },
  );

  test('a pointer to nothing', async () => {
    const folder = new MemoryFolder();
    await save(folder, 1);
    await folder.remove('step-00000001');
    await expect(openLatest(folder)).rejects.toThrow('which is not there');
    expect(await folder.list()).toEqual(['latest']);
  });

  test.each([-1, 0.5, Number.NaN, 2 ** 53])('step %d', async (step) => {
    const folder = new MemoryFolder();
    await save(folder, 1);
    await expect(save(folder, step)).rejects.toThrow(ArgumentError);
    expect(await latest(folder)).toBe('1');
  });
});
