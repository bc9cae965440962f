export * from './autograd';
export * from './backend';
export * from './dtype';
export * from './errors';
export * from './ops';
export * from './scope';
export * from './sequences';
export * from './tensor';
