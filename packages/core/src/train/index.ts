export * from './adamw';
export * from './batches';
export {
  type CheckpointState,
  hasCheckpoint,
  latestCheckpoint,
  type SaveCheckpointOptions,
} from './checkpoint';
export * from './config';
export * from './documents';
export * from './loss';
export * from './schedule';
export * from './train';
export * from './trainer';
