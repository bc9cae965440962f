export * from './bpe-trainer';
export * from './chat-template';
export type * from './encode-corpus';
export { encodeCorpus } from './encode-corpus';
export * from './stop';
export * from './stream-decoder';
export * from './tokenizer';
