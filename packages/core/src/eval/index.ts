export * from './ngram';
export * from './perplexity';
