import { defineConfig } from 'vitest/config';
import { sources } from './vitest.config';

/** The tests that must notice a broken attention kernel of the CPU backend. */
export default defineConfig({
  resolve: { alias: sources },
  test: {
    include: [
      'tests/unit/backend-cpu/*attention.test.ts',
      'tests/unit/backend-cpu/select-blocks.test.ts',
    ],
  },
});
