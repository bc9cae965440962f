export * from './adamw';
export * from './batches';
export {
  type CheckpointState,
  hasCheckpoint,
  latestCheckpoint,
  type SaveCheckpointOptions,
} from './checkpoint';
export {
  parseTrainConfig,
  type TrainConfig,
  type TrainConfigInput,
} from './config';
export * from './documents';
export { GradientSum } from './gradient-sum';
export {
  backpropagate,
  countedTargets,
  type Example,
  freeAll,
  type Gradients,
  losses,
  type PassResults,
} from './loss';
export { learningRate, type Schedule } from './schedule';
export * from './train';
export * from './trainer';
