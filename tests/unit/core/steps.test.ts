import { describe, expect, test } from 'vitest';
import { byTurns, type Steps, toEnd } from '../../../packages/core/src/steps';

/** Writes its name at each step, and what became of it. */
function* work(name: string, steps: number, log: string[]): Steps<string> {
  try {
    for (let i = 0; i < steps; i++) {
      log.push(name);
      yield;
    }
    return `${name} is done`;
  } finally {
    log.push(`end of ${name}`);
  }
}

describe('work in steps', () => {
  test('is done to its end', () => {
    const log: string[] = [];
    expect(toEnd(work('a', 2, log))).toBe('a is done');
    expect(log).toEqual(['a', 'a', 'end of a']);
  });

  test('goes on by turns, and the shorter one ends first', () => {
    const log: string[] = [];
    const all = [work('a', 3, log), work('b', 1, log)];
    byTurns(all, (index, result) => log.push(`${index}: ${result}`));
    expect(log).toEqual([
      ...['a', 'b', 'a', 'end of b', '1: b is done', 'a'],
      ...['end of a', '0: a is done'],
    ]);
  });

  test('ends where other work fails', () => {
    const log: string[] = [];
    function* failing(): Steps<string> {
      yield;
      throw new Error('no more');
    }
    const all = [work('a', 9, log), failing(), work('c', 9, log)];
    expect(() => byTurns(all, () => {})).toThrow('no more');
    expect(log).toEqual(['a', 'c', 'a', 'end of a', 'end of c']);
  });
});
