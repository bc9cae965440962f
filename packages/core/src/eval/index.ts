export * from './choice';
export * from './choice-file';
export { EvaluationFileError } from './file-error';
export * from './needle';
export * from './needle-forms';
export { type KeyWords, keyWords } from './needle-words';
export * from './ngram';
export * from './perplexity';
export { type Proportion, proportion } from './proportion';
