import type { Backend } from '@asa/core';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  type BackendEntry,
  openBackend,
  UnavailableError,
  withBackend,
  withBackends,
} from '../../../packages/cli/src/backends';
import { exitCode } from '../../../packages/cli/src/exit';

const entry = (name: string, why?: string): BackendEntry => ({
  name,
  explain: async () => why,
  open: async () => {
    if (why) throw new Error(why);
    return { name, description: `a ${name}` } as Backend;
  },
});
const broken: BackendEntry = {
  ...entry('broken'),
  open: async () => {
    throw new Error('it broke');
  },
};
const webgpu = entry('webgpu', 'no adapter');
const cpu = entry('cpu');

const stderr = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
afterEach(() => stderr.mockClear());
const said = () => stderr.mock.calls.map(([text]) => text).join('');

describe('openBackend', () => {
  it('opens what is named, without a word', async () => {
    expect((await openBackend('cpu', [webgpu, cpu])).name).toBe('cpu');
    expect(said()).toBe('');
  });

  it.each([
    ['webgpu', 'no adapter'],
    ['broken', 'it broke'],
    ['abacus', 'no such backend'],
  ])('never takes another for %s', async (name, reason) => {
    const opened = openBackend(name, [webgpu, broken, cpu]);
    await expect(opened).rejects.toThrow(UnavailableError);
    await expect(opened).rejects.toMatchObject({
      code: exitCode.unavailable,
      message: `backend ${name} is not available here: ${reason}`,
    });
    expect(exitCode.unavailable).toBe(4);
  });

  it('auto takes the first that works, and says what it passed over', async () => {
    const opened = await openBackend('auto', [webgpu, broken, cpu]);
    expect(opened.name).toBe('cpu');
    expect(said()).toContain(
      'backend cpu (a cpu); passed over webgpu: no adapter; passed over broken: it broke',
    );
  });

  it('auto opens nothing that it was warned of', async () => {
    const risky = { ...entry('risky', 'it crashes'), open: vi.fn() };
    expect((await openBackend('auto', [risky, cpu])).name).toBe('cpu');
    expect(risky.open).not.toHaveBeenCalled();
  });

  it('auto fails where nothing works', () =>
    expect(openBackend('auto', [webgpu])).rejects.toMatchObject({
      code: exitCode.unavailable,
    }));
});

it('withBackend frees the backend when the work fails', async () => {
  let freed: Backend | undefined;
  const work = withBackend('cpu', async (backend) => {
    freed = backend;
    vi.spyOn(backend, 'destroy');
    throw new Error('no');
  });
  await expect(work).rejects.toThrow('no');
  expect(freed?.destroy).toHaveBeenCalledOnce();
});

describe('withBackends', () => {
  const opened = (device: number) =>
    ({
      name: 'cards',
      description: `card ${device}`,
      destroy: vi.fn(),
    }) as unknown as Backend;
  const cards: BackendEntry = {
    ...entry('cards'),
    openDevice: async (device) => {
      if (device > 2) throw new Error(`device ${device} is not one of 3`);
      return opened(device);
    },
  };
  const entries = [cpu, cards];

  it('opens the devices in their order, and frees all of them', async () => {
    let found: readonly Backend[] = [];
    const work = async (backends: readonly Backend[]) => {
      found = backends;
      for (const { destroy } of backends)
        expect(destroy).not.toHaveBeenCalled();
      return 5;
    };
    expect(await withBackends('cards', [2, 0], work, entries)).toBe(5);
    expect(found.map(({ description }) => description)).toEqual([
      'card 2',
      'card 0',
    ]);
    for (const { destroy } of found) expect(destroy).toHaveBeenCalledOnce();
  });

  it('frees those that opened before one that is not there', async () => {
    const first = opened(0);
    const some = { ...cards, openDevice: vi.fn(cards.openDevice) };
    some.openDevice.mockResolvedValueOnce(first);
    const work = vi.fn();
    const found = withBackends('cards', [0, 7], work, [some]);
    await expect(found).rejects.toThrow(UnavailableError);
    await expect(found).rejects.toThrow('device 7 is not one of 3');
    expect(first.destroy).toHaveBeenCalledOnce();
    expect(work).not.toHaveBeenCalled();
  });

  it.each(['cpu', 'auto', 'abacus'])('finds no devices of %s', (name) =>
    expect(withBackends(name, [0], vi.fn(), entries)).rejects.toMatchObject({
      code: exitCode.usage,
      message: `--device: the devices of backend ${name} have no numbers; those of cards have, give --backend`,
    }),
  );
});
