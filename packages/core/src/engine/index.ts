export * from './engine';
export type { ExtendOptions, LogitsPiece } from './extend';
export type {
  BatchEvent,
  EndEvent,
  EndReason,
  GenerateEvent,
  GenerateOptions,
  Timings,
  TokenEvent,
} from './generate';
export { loadTokenizer } from './load-tokenizer';
export * from './sampler';
export { Session } from './session';
export { SessionStateError } from './timeline';
