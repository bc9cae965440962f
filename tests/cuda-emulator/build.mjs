/**
 * Builds the emulator with g++ where it is not built yet. By hand:
 *   eval "$(node tests/cuda-emulator/build.mjs)"
 * prints the environment in which the CUDA driver finds it.
 */
import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const here = fileURLToPath(new URL('.', import.meta.url));
const cache = fileURLToPath(
  new URL('../../node_modules/.cache/asa-cuda-emulator', import.meta.url),
);
const CXX = process.env.CXX ?? 'g++';
const headers = ['simt.h', 'cuda-emulation.h'];
const sources = [
  'emulator.h',
  'fiber.h',
  'simt.cpp',
  'matrices.cpp',
  'cuda.cpp',
  'nvrtc.cpp',
  'cublas.cpp',
];

/** The compiler's version, or nothing. */
function compilerVersion() {
  try {
    return execFileSync(CXX, ['--version'], { encoding: 'utf8' });
  } catch {
    return undefined;
  }
}

/** Why it cannot be built here; an error where `ASA_REQUIRE` asks for it. */
export function whyNoEmulator() {
  if (process.platform !== 'linux') return 'it needs Linux';
  if (compilerVersion() !== undefined) return undefined;
  const reason = `${CXX} is not installed`;
  if (process.env.ASA_REQUIRE?.split(',').includes('emulator')) {
    throw new Error(`ASA_REQUIRE asks for the CUDA emulator: ${reason}`);
  }
  return reason;
}

/** Builds it; the folder of its libraries. */
export async function buildEmulator() {
  const hash = createHash('sha256').update(compilerVersion() ?? '');
  for (const name of [...headers, ...sources]) {
    hash.update(readFileSync(join(here, name)));
  }
  hash.update(readFileSync(fileURLToPath(import.meta.url)));
  const digest = hash.digest();
  const folder = join(cache, digest.toString('hex').slice(0, 16));
  if (existsSync(folder)) return folder;
  mkdirSync(cache, { recursive: true });
  const made = mkdtempSync(join(cache, 'build-'));
  try {
    await buildLibraries(made, digest.readUInt32LE() % 2 ** 31);
    renameSync(made, folder);
  } catch (error) {
    rmSync(made, { recursive: true });
    // Another process may have been first.
    if (!existsSync(folder)) throw error;
  }
  return folder;
}

/**
 * @param {string} made where to
 * @param {number} version told apart by caches of kernels
 */
async function buildLibraries(made, version) {
  await library(made, 'libcuda.so.1', ['simt.cpp', 'matrices.cpp', 'cuda.cpp']);
  await Promise.all([
    library(made, 'libnvrtc.so.13', ['nvrtc.cpp'], {
      EMULATOR_VERSION: version,
      CXX: JSON.stringify(CXX),
    }),
    library(made, 'libcublasLt.so.13', ['cublas.cpp'], {}, [
      join(made, 'libcuda.so.1'),
      '-Wl,-rpath,$ORIGIN',
    ]),
  ]);
  for (const name of headers) copyFileSync(join(here, name), join(made, name));
}

/**
 * @param {string} folder
 * @param {string} name
 * @param {string[]} files
 * @param {Record<string, string | number>} defines
 * @param {string[]} more
 */
async function library(folder, name, files, defines = {}, more = []) {
  await promisify(execFile)(CXX, [
    ...['-std=c++17', '-O3', '-ffp-contract=off'],
    ...['-fPIC', '-shared', '-Wall', '-Werror'],
    ...Object.entries(defines).map(([key, value]) => `-D${key}=${value}`),
    ...files.map((file) => join(here, file)),
    ...['-o', join(folder, name), `-Wl,-soname,${name}`],
    ...more,
    ...['-ldl', '-lm'],
  ]);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const reason = whyNoEmulator();
  if (reason) throw new Error(`the CUDA emulator cannot be built: ${reason}`);
  const folder = await buildEmulator();
  const { LD_LIBRARY_PATH } = process.env;
  const rest = LD_LIBRARY_PATH ? `:${LD_LIBRARY_PATH}` : '';
  console.log(`export LD_LIBRARY_PATH='${folder}${rest}'`);
}
