/** The GPU drivers of asa. */
export * from './webgpu';
