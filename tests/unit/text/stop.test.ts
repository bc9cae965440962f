import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../../packages/core/src/errors';
import { StopMatcher } from '../../../packages/core/src/text';
import { cpuTime } from '../cpu-time';

describe('StopMatcher', () => {
  it('holds back what may become a stop string', () => {
    const matcher = new StopMatcher(['</s>', '\nUser:']);
    const pieces = ['Hello', ' <', '/b>', '\nUs', 'e', 'r: no', 'more'];
    expect(pieces.map((piece) => matcher.push(piece))).toEqual([
      'Hello',
      ' ',
      '</b>',
      '',
      '',
      '',
      '',
    ]);
    expect(matcher.matched).toBe('\nUser:');
    expect(matcher.end()).toBe('');
  });

  it('gives back at the end what was no stop string', () => {
    const matcher = new StopMatcher(['stop']);
    expect(matcher.push('don’t sto')).toBe('don’t ');
    expect(matcher.end()).toBe('sto');
    expect(matcher.matched).toBeUndefined();
  });

  it('takes the stop that ends first, then the longest', () => {
    const inner = new StopMatcher(['abcd', 'bc']);
    expect([inner.push('xabcd'), inner.matched]).toEqual(['xa', 'bc']);
    const tail = new StopMatcher(['bc', 'abc']);
    expect([tail.push('xabc'), tail.matched]).toEqual(['x', 'abc']);
  });

  it('falls back inside of a repeated prefix', () => {
    const matcher = new StopMatcher(['aab']);
    expect(matcher.push('aaaa')).toBe('aa');
    expect(matcher.push('b')).toBe('');
    expect(matcher.matched).toBe('aab');
  });

  it('lets all pass without stops', () => {
    expect(new StopMatcher([]).push('text')).toBe('text');
  });

  it('refuses what can match nothing or half a character', () => {
    expect(() => new StopMatcher([''])).toThrow(ArgumentError);
    expect(() => new StopMatcher(['a\ud83d'])).toThrow(/got "a\\ud83d"/);
  });

  it('takes time in the text, not in text times stop', () => {
    const matcher = new StopMatcher([`${'a'.repeat(1_000)}b`]);
    const started = cpuTime();
    let length = 0;
    for (let i = 0; i < 100; i++)
      length += matcher.push('a'.repeat(10_000)).length;
    expect(length).toBe(1_000_000 - 1_000);
    // A naive search takes 1e9 steps.
    expect(cpuTime() - started).toBeLessThan(1_000);
  });
});
