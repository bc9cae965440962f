import { type Backend, operators, Scope, UnsupportedError } from '@asa/core';

/**
 * A small product whose sums are whole numbers, and so exact in any order.
 * @throws UnsupportedError when the device gets it wrong.
 */
export async function checkKnownAnswer(backend: Backend): Promise<void> {
  // Few rows: the kernel for them compiles fastest.
  const [m, n, k] = [3, 19, 23];
  const a = Float32Array.from({ length: m * k }, (_, i) => (i * 7) % 11);
  const b = Float32Array.from({ length: k * n }, (_, i) => (i * 5) % 13);
  const scope = new Scope(backend);
  try {
    const { y } = scope.run(
      operators.matmul,
      { a: scope.tensor(a, [m, k], 'f32'), b: scope.tensor(b, [k, n], 'f32') },
      {},
    );
    const got = await scope.read(y);
    for (let i = 0; i < got.length; i++) {
      const row = Math.floor(i / n);
      let want = 0;
      for (let p = 0; p < k; p++) {
        want += (a[row * k + p] ?? 0) * (b[p * n + (i % n)] ?? 0);
      }
      if (got[i] !== want) {
        throw new UnsupportedError(
          'open',
          backend.name,
          `a product of whole numbers is wrong, ${got[i]} at ${i} for ${want}: the device or its driver is faulty`,
        );
      }
    }
  } finally {
    scope.free();
  }
}
