import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { gpuAdvice, loaderOf } from '../../../packages/cli/src/gpu-advice';
import { probeWebGpu, whyNoGpu } from '../../../packages/cli/src/gpu-probe';
import { whyNotWebGpu } from '../../../packages/cli/src/probe-memory';
import { vulkanFiles } from '../../../packages/cli/src/vulkan-files';

const root = mkdtempSync(join(tmpdir(), 'asa-probe-'));
afterAll(() => rmSync(root, { recursive: true }));

function file(name: string, text: string): string {
  const path = join(root, name);
  mkdirSync(join(path, '..'), { recursive: true });
  writeFileSync(path, text);
  return path;
}

describe('probeWebGpu', () => {
  const probe = (name: string, text: string, patience?: number) =>
    probeWebGpu({
      path: file(`${name}.mjs`, text),
      ...(patience && { patienceMs: patience }),
    });
  const report = { device: 'a GPU', adapters: [], libraries: [] };

  it('gives what the process found out', async () => {
    const text = `console.log('${JSON.stringify(report)}')`;
    expect(await probe('good', text)).toEqual(report);
  });

  it('believes a process that crashes behind its report', async () => {
    const text = `process.stdout.write('${JSON.stringify(report)}', () =>
      process.kill(process.pid, 'SIGSEGV'))`;
    expect(await probe('late', text)).toEqual(report);
  });

  it.each([
    ['crash', "process.kill(process.pid, 'SIGSEGV')", 'signal SIGSEGV'],
    ['exit', 'process.exit(7)', 'exit code 7'],
    ['nonsense', "console.log('hello')", 'exit code 0'],
  ])('outlives a driver that ends in %s', async (name, text, reason) => {
    const found = await probe(name, text);
    expect(found).toMatchObject({ adapters: [], libraries: [] });
    expect(found.reason).toContain(reason);
    expect(found.device).toBeUndefined();
  });

  it('does not wait for a driver that hangs', async () => {
    const found = await probe('hang', 'for (;;);', 300);
    expect(found.reason).toBe('the driver did not answer within 0.3 s');
  });

  it('says why the process could not start', async () => {
    const { reason } = await probeWebGpu({
      path: join(root, 'missing.mjs'),
    });
    expect(reason).toContain('exit code 1');
  });
});

describe('whyNotWebGpu', () => {
  const env = { XDG_CACHE_HOME: join(root, 'cache') };
  const good = { device: 'a GPU', adapters: [], libraries: [] };

  it('tries again only when something changed', async () => {
    const probe = vi.fn(async () => good);
    expect(await whyNotWebGpu(env, probe)).toBeUndefined();
    expect(await whyNotWebGpu(env, probe)).toBeUndefined();
    expect(probe).toHaveBeenCalledTimes(1);
    const changed = { ...env, VK_DRIVER_FILES: join(root, 'c.json') };
    expect(await whyNotWebGpu(changed, probe)).toBeUndefined();
    expect(probe).toHaveBeenCalledTimes(2);
  });

  it('remembers no failure', async () => {
    const folder = { XDG_CACHE_HOME: join(root, 'other') };
    const probe = vi.fn(async () => ({
      ...{ reason: 'it broke', adapters: [], libraries: [] },
    }));
    expect(await whyNotWebGpu(folder, probe)).toBe('it broke');
    expect(await whyNotWebGpu(folder, probe)).toBe('it broke');
    expect(probe).toHaveBeenCalledTimes(2);
  });

  it('works where nothing can be written', async () => {
    const nowhere = { XDG_CACHE_HOME: '/dev/null/x' };
    expect(await whyNotWebGpu(nowhere, async () => good)).toBeUndefined();
  });
});

describe('whyNoGpu', () => {
  const folder = join(root, 'dev');
  const look = (platform: NodeJS.Platform = 'linux') =>
    whyNoGpu([[folder, /^nvidia\d+$/]], platform);

  it('looks for device files on Linux', async () => {
    expect(await look()).toBe(`no GPU's device file in ${folder}`);
    file('dev/nvidiax', '');
    expect(await look()).toMatch(/no GPU/);
    file('dev/nvidia0', '');
    expect(await look()).toBeUndefined();
  });

  it('knows nothing of other systems', async () => {
    expect(await whyNoGpu([['/nowhere', /x/]], 'darwin')).toBeUndefined();
  });
});

describe('vulkanFiles', () => {
  const good = file(
    'etc/vulkan/icd.d/a.json',
    '{"ICD":{"library_path":"x.so"}}',
  );
  const gone = file(
    'etc/vulkan/icd.d/b.json',
    '{"ICD":{"library_path":"/nowhere/y.so"}}',
  );
  const empty = file('c.json', '{}');
  const broken = file('d.json', '{');
  const env = { XDG_CONFIG_HOME: join(root, 'etc') };

  it('reads the driver files of the folders', async () => {
    const { drivers, variables } = await vulkanFiles(env, root);
    expect(drivers).toEqual(
      expect.arrayContaining([
        { path: good, library: 'x.so' },
        { path: gone, library: '/nowhere/y.so', flaw: 'its library is gone' },
      ]),
    );
    expect(variables).toEqual({});
  });

  it('reads those of the variables in their place', async () => {
    const { drivers, variables } = await vulkanFiles(
      {
        ...env,
        VK_DRIVER_FILES: `${empty}:${broken}`,
        VK_ICD_FILENAMES: good,
        VK_ADD_DRIVER_FILES: good,
        XDG_RUNTIME_DIR: '/run/me',
      },
      root,
    );
    expect(drivers.map(({ path }) => path)).toEqual([good, empty, broken]);
    expect(drivers[1]?.flaw).toBe('it names no library');
    expect(drivers[2]?.flaw).toMatch(/JSON/);
    expect(Object.keys(variables)).toHaveLength(3);
  });

  it('finds loaders where libraries are looked for', async () => {
    const path = file('lib/libvulkan.so.1', '');
    const own = { ...env, LD_LIBRARY_PATH: join(root, 'lib') };
    expect((await vulkanFiles(own, root)).loaders[0]).toBe(path);
  });
});

describe('gpuAdvice', () => {
  const none = { adapters: [], libraries: [] };
  const facts = {
    platform: 'linux' as const,
    noDevice: undefined,
    vulkan: {
      loaders: ['/lib/libvulkan.so.1'],
      variables: {},
      drivers: [{ path: 'n.json', library: 'libGLX_nvidia.so.0' }],
      runtimeFolder: '/run/me',
    },
    webgpu: { ...none, device: 'a GPU' },
  };

  it('has none where a GPU works', () => {
    expect(gpuAdvice(facts)).toEqual([]);
  });

  it.each([
    ['no device', { noDevice: 'no file' }, /--gpus all/],
    ['no loader', { vulkan: { ...facts.vulkan, loaders: [] } }, /libvulkan1/],
    ['no driver', { vulkan: { ...facts.vulkan, drivers: [] } }, /\(ICD\)/],
    [
      'no NVIDIA driver',
      { vulkan: { ...facts.vulkan, drivers: [{ path: 'x', library: 'y' }] } },
      /NVIDIA_DRIVER_CAPABILITIES=all/,
    ],
    [
      'a broken driver file',
      { vulkan: { ...facts.vulkan, drivers: [{ path: 'x', flaw: 'bad' }] } },
      /x: bad/,
    ],
    [
      'no runtime folder',
      { vulkan: { ...facts.vulkan, runtimeFolder: undefined } },
      /XDG_RUNTIME_DIR/,
    ],
  ])('for %s', (_, change, advice) => {
    const all = gpuAdvice({ ...facts, webgpu: none, ...change });
    expect(all.join('\n')).toMatch(advice);
  });

  it('for a GPU without f16', () => {
    const adapter = {
      ...{ description: 'NVIDIA', isSoftware: false, features: [] },
      ...{
        limits: {},
        matrixPath: 'plain' as const,
      },
    };
    const webgpu = { ...facts.webgpu, adapters: [adapter] };
    expect(gpuAdvice({ ...facts, webgpu }).join()).toMatch(
      /vulkan_enable_f16_on_nvidia/,
    );
  });

  it('names the loader that was loaded before the one that was found', () => {
    const libraries = ['/a/libnvidia.so', '/b/libvulkan.so.1.4'];
    const webgpu = { ...none, libraries };
    expect(loaderOf({ ...facts, webgpu })).toBe('/b/libvulkan.so.1.4');
    expect(loaderOf({ ...facts, webgpu: none })).toBe('/lib/libvulkan.so.1');
  });
});
