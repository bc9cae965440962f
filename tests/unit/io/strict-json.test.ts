import { describe, expect, test } from 'vitest';
import { JsonReader } from '../../../packages/core/src/io/strict-json';

class JsonFault extends Error {}

const read = <T>(text: string, take: (json: JsonReader) => T): T => {
  const json = new JsonReader(text, (rule) => new JsonFault(rule));
  const value = take(json);
  json.end();
  return value;
};

const accepts = (text: string): boolean => {
  try {
    read(text, (json) => json.skip());
    return true;
  } catch (error) {
    if (error instanceof JsonFault) return false;
    throw error;
  }
};

const parses = (text: string): boolean => {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
};

describe('agrees with JSON.parse on what is JSON', () => {
  const texts = [
    '{}',
    '[]',
    ' [ 1 , 2 ] ',
    '{"a":{"b":[null,true,false]}}',
    '"\\u00e9\\n\\"\\\\\\/"',
    '-0.5e+10',
    '0',
    '',
    ' ',
    '{',
    '[1,]',
    '[,1]',
    '{"a":1,}',
    '{a:1}',
    "{'a':1}",
    '{"a"}',
    '{"a":}',
    '{"a" 1}',
    '[1 2]',
    '[1]]',
    '01',
    '1.',
    '.5',
    '+1',
    '1e',
    '-',
    'NaN',
    'Infinity',
    'tru',
    'nulll',
    '"',
    '"\\"',
    '"\\x"',
    '"\\u12"',
    '"\n"',
    '"\u0000"',
    '"\u007f"',
    '\ufeff{}',
    '\u00a0{}',
    '// comment\n{}',
  ];
  test.each(texts)('%j', (text) => {
    expect(accepts(text)).toBe(parses(text));
  });
});

describe('refuses what JSON.parse lets through', () => {
  test('a key that an object holds twice, escaped or not', () => {
    expect(() => read('{"a":1,"a":2}', (json) => json.skip())).toThrow(
      'key "a" is there twice',
    );
    expect(accepts('{"a":1,"\\u0061":2}')).toBe(false);
    expect(accepts('[{"a":1},{"a":{"a":2}}]')).toBe(true);
    expect(accepts('{"__proto__":1,"constructor":2,"":3}')).toBe(true);
  });

  test('100,000 nested arrays', () => {
    expect(accepts('['.repeat(100_000))).toBe(false);
    expect(accepts('['.repeat(100_000) + ']'.repeat(100_000))).toBe(false);
    expect(accepts('{"a":'.repeat(100_000))).toBe(false);
    expect(accepts('['.repeat(64) + ']'.repeat(64))).toBe(true);
    expect(accepts('['.repeat(65) + ']'.repeat(65))).toBe(false);
  });

  test('half a surrogate pair', () => {
    expect(accepts('"\\ud800"')).toBe(false);
    expect(accepts('"\\ud83d\\ude00"')).toBe(true);
  });
});

test('strings come out decoded', () => {
  const text = '{"a\\u0062":"\\n\\ud83d\\ude00","":"é"}';
  const got: [string, string][] = [];
  read(text, (json) => json.object((key) => got.push([key, json.string()])));
  expect(got).toEqual([
    ['ab', '\n😀'],
    ['', 'é'],
  ]);
});

test('a whole number is digits, at most 2^53 - 1', () => {
  const natural = (text: string) => read(text, (json) => json.natural());
  expect(natural('0')).toBe(0);
  expect(natural(' 9007199254740991 ')).toBe(Number.MAX_SAFE_INTEGER);
  for (const text of ['9007199254740992', '-1', '-0', '1.0', '1e2', '"1"']) {
    expect(() => natural(text)).toThrow(JsonFault);
  }
  expect(() => natural('9'.repeat(1e6))).toThrow(/^.{0,200}$/u);
});
