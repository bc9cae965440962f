import { afterEach, describe, expect, it, vi } from 'vitest';
import { interruptible } from '../../../packages/cli/src/interrupt';

afterEach(() => {
  vi.restoreAllMocks();
});

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) =>
    signal.addEventListener('abort', () => resolve()),
  );

describe('interruptible', () => {
  it('aborts at the first Ctrl-C, and the work ends as it likes', async () => {
    const work = interruptible(async (signal) => {
      await aborted(signal);
      return 'kept';
    });
    process.emit('SIGINT');
    expect(await work).toBe('kept');
  });

  it('ends with 130 where the work throws the reason', async () => {
    const work = interruptible(async (signal) => {
      await aborted(signal);
      signal.throwIfAborted();
    });
    process.emit('SIGINT');
    await expect(work).rejects.toMatchObject({ code: 130 });
  });

  it('lets other errors through', async () => {
    const failure = new Error('the disk is full');
    const work = interruptible(async (signal) => {
      await aborted(signal);
      throw failure;
    });
    process.emit('SIGINT');
    await expect(work).rejects.toBe(failure);
  });

  it('ends the program at the second, but not at one press seen twice', async () => {
    const exit = vi
      .spyOn(process, 'exit')
      .mockImplementation(() => undefined as never);
    let finish = () => {};
    const work = interruptible(
      () =>
        new Promise<void>((resolve) => {
          finish = resolve;
        }),
    );
    process.emit('SIGINT');
    process.emit('SIGINT');
    expect(exit).not.toHaveBeenCalled();
    await new Promise((resolve) => setTimeout(resolve, 200));
    process.emit('SIGINT');
    expect(exit).toHaveBeenCalledWith(130);
    finish();
    await work;
  });

  it('leaves no handler behind', async () => {
    const before = process.listenerCount('SIGINT');
    await interruptible(async () => undefined);
    await interruptible(() => Promise.reject(new Error())).catch(() => {});
    expect(process.listenerCount('SIGINT')).toBe(before);
  });
});
