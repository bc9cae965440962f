import { defineConfig } from 'tsup';

export default defineConfig({
  entry: ['src/index.ts'],
  format: ['esm', 'cjs'],
  target: 'es2023',
  platform: 'neutral',
  external: [/^node:/],
  tsconfig: '../../tsconfig.build.json',
  dts: true,
  sourcemap: true,
  clean: true,
});
