/** CUDA's toolkit for development, where it is installed. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';

const roots = [process.env.CUDA_PATH, '/usr/local/cuda'].filter(
  (root) => root !== undefined,
);

const folders = [
  ...(process.env.PATH ?? '').split(delimiter),
  ...roots.map((root) => join(root, 'bin')),
];

/** The compiler, or nothing. */
export const nvcc = folders
  .map((folder) => join(folder, 'nvcc'))
  .find((path) => existsSync(path));

export const cudaHeader =
  roots
    .map((root) => join(root, 'include', 'cuda.h'))
    .find((path) => existsSync(path)) ?? '';

export const whyNoCudaHeader = () =>
  required(cudaHeader ? undefined : 'cuda.h is not installed');

export const whyNoCompiler = () =>
  required(nvcc ? undefined : 'nvcc is not installed');

/** An error instead where `ASA_REQUIRE` asks for it. */
function required(reason: string | undefined): string | undefined {
  if (reason && process.env.ASA_REQUIRE?.split(',').includes('nvcc')) {
    throw new Error(`ASA_REQUIRE asks for nvcc: ${reason}`);
  }
  return reason;
}

export function nvccVersion(): string {
  return nvcc ? execFileSync(nvcc, ['--version'], { encoding: 'utf8' }) : '';
}
