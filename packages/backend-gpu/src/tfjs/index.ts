export type { Engine, EngineHost } from './engines';
export { explainTfjs, openTfjs, type TfjsOptions } from './open';
export type { TfjsBackend } from './tfjs-backend';
