import { readdirSync, readFileSync } from 'node:fs';
import { operators } from '@asa/core';
import { describe, expect, test } from 'vitest';
import { pageOf } from '../../../scripts/backends.mjs';

const docs = new URL('../../../docs/', import.meta.url);
const read = (path: string) => readFileSync(new URL(path, docs), 'utf8');

describe('docs/backends.md', () => {
  test('has the tables of docs/figures: node scripts/backends.mjs page', () => {
    const page = read('backends.md');
    expect(pageOf(page)).toBe(page);
  });

  test('is of figures that know every operator', () => {
    const files = readdirSync(new URL('figures/', docs), {
      recursive: true,
      encoding: 'utf8',
    }).filter((file) => file.endsWith('.operators.json'));
    expect(files.length).toBeGreaterThan(0);
    for (const file of files) {
      const found = JSON.parse(read(`figures/${file}`)).operators;
      expect(Object.keys(found), file).toEqual(Object.keys(operators));
    }
  });
});
