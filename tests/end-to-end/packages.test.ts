import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { describe, expect, it } from 'vitest';
import {
  softwareEnvironment,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

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

/** Packages that only those shall load who asked for them. */
const heavy = ['gpu.js', '@tensorflow', 'koffi', 'webgpu'] as const;

const noGpu = whyNoSoftwareGpu();

/** Says each module that Node.js resolves. */
const hook = `import { writeSync } from 'node:fs';
export async function resolve(specifier, context, next) {
  const found = await next(specifier, context);
  writeSync(1, found.url + '\\n');
  return found;
}`;

/** Which of them a process of its own loads that runs this and then ends. */
function loadedBy(code: string, env = process.env): readonly string[] {
  const source = `import { register } from 'node:module';
register('data:text/javascript,' + ${JSON.stringify(encodeURIComponent(hook))});
await (async () => { ${code} })();`;
  const urls = execFileSync(
    process.execPath,
    ['--input-type=module', '--eval', source],
    {
      ...{ cwd: new URL('.', import.meta.url), env },
      ...{ encoding: 'utf8', timeout: 60_000 },
    },
  );
  return heavy.filter((name) => urls.includes(`/node_modules/${name}/`));
}

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

  it.each(entries)('%s loads no more than it must', (name) => {
    const mayLoad: Readonly<Record<string, readonly string[]>> = {
      '@asa/backend-gpu/cuda': ['koffi'],
      '@asa/backend-gpu/tfjs': ['@tensorflow'],
    };
    const loaded = loadedBy(`await import(${JSON.stringify(name)});`);
    expect(loaded).toEqual(mayLoad[name] ?? []);
  });

  it('gpu.js is loaded where it is opened, and lets the process end', () => {
    const loaded = loadedBy(
      `const { openGpuJs } = await import('@asa/backend-gpu/gpujs');
       await (await openGpuJs({ mode: 'wasm' })).destroy();`,
    );
    expect(loaded).toEqual(['gpu.js']);
  });

  it.skipIf(noGpu)(
    `gpu.js on WebGPU lets the process end ${noGpu ?? ''}`,
    () => {
      const loaded = loadedBy(
        `const { openGpuJs } = await import('@asa/backend-gpu/gpujs');
       const options = { mode: 'webgpu', software: true };
       await (await openGpuJs(options)).destroy();`,
        softwareEnvironment(),
      );
      expect(loaded).toEqual(['gpu.js', 'webgpu']);
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
