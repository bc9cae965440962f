/**
 * Verification as a product: the same body is run by the tests and by
 * `asa verify`. See docs/verification.md.
 */
export { operatorCases } from './arbitraries';
export { type Comparison, compareValues } from './comparison';
export { differential } from './differential';
export type { FuzzOptions, Outcome } from './fuzz';
export { compareGolden, type GoldenEntry, listGolden } from './golden';
export { type Law, type LawContext, laws } from './laws';
export type { Report, Row, RowStatus, Suite } from './report';
export { type Allowance, allowance } from './tolerances';
export {
  lawContext,
  type VerifyEvent,
  type VerifyOptions,
  verify,
  verifyAll,
} from './verify';
export { type AnyKernel, withKernels } from './wrap-backend';
