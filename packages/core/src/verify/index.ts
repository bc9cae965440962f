export * from '../errors';
