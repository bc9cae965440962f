import type { Backend } from '@asa/core';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  type BackendEntry,
  openBackend,
  UnavailableError,
  withBackend,
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
