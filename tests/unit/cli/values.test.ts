import { describe, expect, it } from 'vitest';
import {
  byteCount,
  collect,
  integer,
  real,
} from '../../../packages/cli/src/values';

describe('integer', () => {
  it.each([
    ['12', 12],
    ['1e6', 1_000_000],
    ['-3', -3],
    [' 7 ', 7],
  ])('reads %j', (text, value) => expect(integer()(text)).toBe(value));

  it.each([
    '',
    ' ',
    'x',
    '1.5',
    'NaN',
    'Infinity',
    '1e300',
    '9007199254740993',
  ])('refuses %j', (text) =>
    expect(() => integer()(text)).toThrow('a whole number'),
  );

  it('includes its limits, and names them', () => {
    const range = integer({ min: 1, max: 3 });
    expect([range('1'), range('3')]).toEqual([1, 3]);
    for (const text of ['0', '4']) {
      expect(() => range(text)).toThrow('at least 1 and at most 3');
    }
  });
});

describe('real', () => {
  it.each([
    ['0.7', 0.7],
    ['-1e-3', -0.001],
  ])('reads %j', (text, value) => expect(real()(text)).toBe(value));

  it.each(['', 'x', 'NaN', '-Infinity', '1,5'])('refuses %j', (text) =>
    expect(() => real()(text)).toThrow('a number'),
  );

  it('leaves out what it must be above', () => {
    const range = real({ above: 0, max: 1 });
    expect([range('1e-9'), range('1')]).toEqual([1e-9, 1]);
    expect(() => range('0')).toThrow('above 0 and at most 1');
    expect(() => range('1.1')).toThrow('at most 1');
  });
});

describe('byteCount', () => {
  it.each([
    ['500', 500],
    ['500MB', 500e6],
    ['2GiB', 2 ** 31],
    ['1.5 kib', 1536],
  ])('reads %j', (text, value) => expect(byteCount(text)).toBe(value));

  it.each(['', 'MB', '-1MB', '0', '1XB', 'e', '1e999'])('refuses %j', (text) =>
    expect(() => byteCount(text)).toThrow('a size'),
  );
});

it('collect keeps the order, and refuses nothing as a value', () => {
  expect(collect('b', collect('a'))).toEqual(['a', 'b']);
  expect(() => collect('')).toThrow('empty');
});
