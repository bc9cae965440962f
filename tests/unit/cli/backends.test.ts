import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { openCpu } from '../../../packages/backend-cpu/src';
import {
  type BackendEntry,
  backends,
  openBackend,
} from '../../../packages/cli/src/backends';

const works: BackendEntry = {
  name: 'works',
  explain: async () => undefined,
  open: () => openCpu(),
};
const absent: BackendEntry = {
  name: 'absent',
  explain: async () => 'there is no such device',
  open: () => Promise.reject(new Error('must not be opened')),
};
const broken: BackendEntry = {
  name: 'broken',
  explain: async () => undefined,
  open: () => Promise.reject(new Error('the driver\nis too old')),
};

let stderr = '';
beforeEach(() => {
  stderr = '';
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    stderr += text;
    return true;
  });
});
afterEach(() => {
  vi.restoreAllMocks();
});

describe('openBackend', () => {
  it('takes the first that works, and says so and why not the others', async () => {
    const backend = await openBackend('auto', [absent, broken, works]);
    expect(backend.name).toBe('cpu');
    expect(stderr).toContain('asa: backend cpu (');
    expect(stderr).toContain('passed over absent: there is no such device');
    expect(stderr).toContain('passed over broken: the driver');
  });

  it('opens the one that is named without a word', async () => {
    const backend = await openBackend('works', [absent, works]);
    expect(backend.name).toBe('cpu');
    expect(stderr).toBe('');
  });

  it.each([
    [absent, 'there is no such device'],
    [broken, 'the driver'],
  ])('ends with 4 where the named one is not available', async (entry, why) => {
    await expect(openBackend(entry.name, [entry, works])).rejects.toMatchObject(
      {
        code: 4,
        message: expect.stringContaining(why),
      },
    );
    expect(stderr).toBe('');
  });

  it('ends with 4 where none is available', async () => {
    await expect(openBackend('auto', [absent, broken])).rejects.toMatchObject({
      code: 4,
    });
  });

  it('always has a backend: the CPU', async () => {
    const cpu = backends.find(({ name }) => name === 'cpu');
    expect(await cpu?.explain()).toBeUndefined();
    expect(backends.at(-1)).toBe(cpu);
  });
});
