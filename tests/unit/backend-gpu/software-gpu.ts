/**
 * A GPU in software for machines without one: Dawn on SwiftShader, which the
 * package @sparticuz/chromium holds. Dawn takes the Vulkan library that lies
 * beside it; a copy of Dawn in a folder of its own keeps that library from
 * hiding a real GPU.
 *
 * `ASA_WEBGPU=system` takes what `openWebGpu` finds by itself instead: lavapipe
 * where it is installed, or a real GPU. `ASA_WEBGPU=operators` leaves out whole
 * models on SwiftShader, for which it compiles for minutes: for a run beside one
 * on another adapter.
 */
import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliDecompressSync } from 'node:zlib';

const cache = fileURLToPath(
  new URL('../../../node_modules/.cache/asa-swiftshader', import.meta.url),
);

const holder = globalThis as { asaSoftwareGpu?: GPU };

/** The adapter is the system's own, as `ASA_WEBGPU=system` asks for. */
export const onSystemAdapter = process.env.ASA_WEBGPU === 'system';

// Most of lavapipe's time goes into compiling: narrow vectors and no optimizer
// make that several times faster. Read when the driver is loaded.
if (onSystemAdapter) {
  process.env.XDG_RUNTIME_DIR ??= '/tmp';
  process.env.LP_NATIVE_VECTOR_WIDTH ??= '128';
  process.env.GALLIVM_PERF ??= 'nopt';
}

/** Types that operators are tried in; SwiftShader has no f16. */
export const softwareTypes = onSystemAdapter
  ? (['f32', 'f16'] as const)
  : (['f32'] as const);

/**
 * Why there is no software GPU here; nothing when there is one. An error
 * instead where `ASA_REQUIRE` asks for WebGPU.
 */
export function whyNoSoftwareGpu(): string | undefined {
  const reason =
    onSystemAdapter || (process.platform === 'linux' && process.arch === 'x64')
      ? undefined
      : `SwiftShader's build is for linux-x64, this is ${process.platform}-${process.arch}`;
  if (reason && process.env.ASA_REQUIRE?.split(',').includes('webgpu')) {
    throw new Error(`ASA_REQUIRE asks for webgpu: ${reason}`);
  }
  return reason;
}

/** Kept on `globalThis`: collected while in use, it takes the process down. */
export function softwareGpu(): GPU | undefined {
  if (onSystemAdapter) return undefined;
  holder.asaSoftwareGpu ??= open();
  return holder.asaSoftwareGpu;
}

/** With these variables another process finds the same GPU by itself. */
export function softwareEnvironment(): NodeJS.ProcessEnv {
  return onSystemAdapter
    ? { ...process.env }
    : { ...process.env, LD_LIBRARY_PATH: folder(), XDG_RUNTIME_DIR: '/tmp' };
}

function open(): GPU {
  process.env.XDG_RUNTIME_DIR ??= '/tmp';
  const module = {
    exports: {} as { create: (o: string[]) => GPU; globals: object },
  };
  process.dlopen(module, join(folder(), 'dawn.node'));
  const { create, globals } = module.exports;
  Object.assign(globalThis, globals);
  return create(['enable-dawn-features=allow_unsafe_apis']);
}

/** Both libraries side by side, unpacked once. */
function folder(): string {
  const require = createRequire(
    new URL('../../../packages/backend-gpu/package.json', import.meta.url),
  );
  const dawn = dawnPath(dirname(require.resolve('webgpu')));
  const archive = join(
    dirname(require.resolve('@sparticuz/chromium')),
    '../../bin/swiftshader.tar.br',
  );
  if (existsSync(join(cache, 'dawn.node'))) return cache;
  mkdirSync(dirname(cache), { recursive: true });
  // Tests run side by side: each unpacks on its own, the first one to end wins.
  const own = mkdtempSync(`${cache}-`);
  const tar = join(own, 'swiftshader.tar');
  writeFileSync(tar, brotliDecompressSync(readFileSync(archive)));
  execFileSync('tar', ['-xf', tar, '-C', own]);
  rmSync(tar);
  renameSync(join(own, 'libvk_swiftshader.so'), join(own, 'libvulkan.so.1'));
  copyFileSync(dawn, join(own, 'dawn.node'));
  try {
    renameSync(own, cache);
  } catch {
    rmSync(own, { recursive: true });
  }
  return cache;
}

/** Versions of the package differ in where the library lies. */
function dawnPath(root: string): string {
  const { platform, arch } = process;
  const places = [
    join(root, 'dist', `${platform}-${arch}`, 'dawn.node'),
    join(root, 'dist', `${platform}-${arch}.dawn.node`),
  ];
  const found = places.find((path) => existsSync(path));
  if (!found) throw new Error(`webgpu has no build for ${platform}-${arch}`);
  return found;
}
