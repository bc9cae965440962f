export * from './batch';
export * from './cache';
export * from './cache-layout';
export * from './config';
export * from './model';
export * from './parameters';
