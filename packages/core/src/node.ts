export * from './errors';
export * from './node/files';
export * from './node/template-runner';
