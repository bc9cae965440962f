import { defineConfig } from 'tsup';

export default defineConfig({
  entry: {
    index: 'src/index.ts',
    webgpu: 'src/webgpu/index.ts',
    cuda: 'src/cuda/index.ts',
    tfjs: 'src/tfjs/index.ts',
    gpujs: 'src/gpujs/index.ts',
  },
  format: ['esm', 'cjs'],
  // Shared chunks: the entry that opens any driver reads a driver's code when
  // its turn comes, and a class that two entries hold is one class.
  splitting: true,
  // Rollup then writes the CommonJS chunks; tsup's own way lowers the classes.
  treeshake: true,
  target: 'es2023',
  platform: 'neutral',
  external: ['webgpu', 'koffi', /^node:/],
  // CUDA kernels travel as text and are compiled where they run.
  loader: { '.cu': 'text', '.cuh': 'text' },
  tsconfig: '../../tsconfig.build.json',
  dts: true,
  sourcemap: true,
  clean: true,
});
