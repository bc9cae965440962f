/**
 * Benchmarks as a product: one body measures every backend, and each figure
 * stands behind a comparison with the reference. See docs/benchmarks.md.
 */
export {
  type BenchEvent,
  type BenchOptions,
  bench,
  benchCases,
} from './bench';
export {
  type BenchCase,
  type BenchSuite,
  benchSuites,
  type Check,
  type Prepared,
} from './case';
export { type Cost, type CostedCall, costOf } from './cost';
export { CountingBackend } from './counting-backend';
export type { BenchModel } from './models';
export { type BenchProfile, type ProfileName, profiles } from './profile';
export type { BenchReport, BenchRow, Rates } from './report';
export { measure, type Timing, type TimingOptions } from './timing';
