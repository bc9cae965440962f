import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { describe, expect, it } from 'vitest';

interface Manifest {
  name: string;
  exports: Record<string, string | { import: object; require: object }>;
}

const packages = new URL('../../packages/', import.meta.url);
const require = createRequire(import.meta.url);

/** Every code entry of every package, as a user names it in an import. */
const entries = readdirSync(packages).flatMap((folder) => {
  const path = new URL(`${folder}/package.json`, packages);
  const manifest = JSON.parse(readFileSync(path, 'utf8')) as Manifest;
  return Object.entries(manifest.exports)
    .filter(([, target]) => typeof target === 'object')
    .map(([subpath]) => manifest.name + subpath.slice(1));
});

/** Node's own loader, past the test runner's. */
const load = (name: string): Promise<object> => import(/* @vite-ignore */ name);

describe('published entries', () => {
  it('include every entry of core', () => {
    expect(entries).toEqual(
      expect.arrayContaining([
        '@asa/core',
        '@asa/core/node',
        '@asa/core/verify',
        '@asa/backend-cpu',
      ]),
    );
  });

  it.each(entries)(
    '%s offers the same names to import and require',
    async (name) => {
      const imported = Object.keys(await load(name)).sort();
      const required = Object.keys(require(name)).sort();
      expect(imported.length).toBeGreaterThan(0);
      expect(required).toEqual(imported);
    },
  );

  it.each(['.js', '.cjs'])('hold each error class once (%s)', (extension) => {
    // Twice, and `instanceof` fails between two entries of one package.
    const dist = new URL('core/dist/', packages);
    const holders = readdirSync(dist)
      .filter((file) => file.endsWith(extension))
      .filter((file) =>
        /\bclass AsaError|AsaError = class/.test(
          readFileSync(new URL(file, dist), 'utf8'),
        ),
      );
    expect(holders).toHaveLength(1);
  });
});
