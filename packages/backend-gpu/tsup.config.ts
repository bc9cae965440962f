import { defineConfig } from 'tsup';

export default defineConfig({
  entry: { index: 'src/index.ts', webgpu: 'src/webgpu/index.ts' },
  format: ['esm', 'cjs'],
  target: 'es2023',
  platform: 'neutral',
  external: ['webgpu'],
  tsconfig: '../../tsconfig.build.json',
  dts: true,
  sourcemap: true,
  clean: true,
});
