import { afterEach, expect, it, vi } from 'vitest';
import { exitCode } from '../../../packages/cli/src/exit';
import { interruptible } from '../../../packages/cli/src/interrupt';

const exit = vi
  .spyOn(process, 'exit')
  .mockImplementation(() => undefined as never);
afterEach(() => exit.mockClear());

const pause = (ms: number) =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

it('the first Ctrl-C aborts the signal and keeps the result', async () => {
  const result = await interruptible(async (signal) => {
    expect(signal.aborted).toBe(false);
    process.emit('SIGINT');
    return signal.aborted;
  });
  expect(result).toBe(true);
  expect(exit).not.toHaveBeenCalled();
});

it('the second ends the program; one press that comes twice does not', async () => {
  await interruptible(async () => {
    process.emit('SIGINT');
    process.emit('SIGINT');
    expect(exit).not.toHaveBeenCalled();
    await pause(80);
    process.emit('SIGINT');
    expect(exit).toHaveBeenCalledExactlyOnceWith(130);
  });
});

it('work that throws the reason was stopped, not broken', async () => {
  const stopped = interruptible(async (signal) => {
    process.emit('SIGINT');
    signal.throwIfAborted();
  });
  await expect(stopped).rejects.toMatchObject({ code: exitCode.interrupted });
  const broken = interruptible(async () => {
    process.emit('SIGINT');
    throw new Error('broken');
  });
  await expect(broken).rejects.toThrow('broken');
});

it('leaves no handler behind', async () => {
  const before = process.listenerCount('SIGINT');
  await interruptible(async () => {
    expect(process.listenerCount('SIGINT')).toBe(before + 1);
  });
  expect(process.listenerCount('SIGINT')).toBe(before);
});
