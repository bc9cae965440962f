import { defineConfig } from 'tsup';

export default defineConfig({
  entry: {
    index: 'src/index.ts',
    node: 'src/node.ts',
    verify: 'src/verify/index.ts',
    bench: 'src/bench/index.ts',
  },
  format: ['esm', 'cjs'],
  // Shared chunks: a class that two entries hold is one class, so `instanceof`
  // works across them, in CommonJS too.
  splitting: true,
  // Rollup then writes the CommonJS chunks; tsup's own way lowers the classes.
  treeshake: true,
  target: 'es2023',
  platform: 'neutral',
  external: [/^node:/],
  tsconfig: '../../tsconfig.build.json',
  dts: true,
  sourcemap: true,
  clean: true,
});
