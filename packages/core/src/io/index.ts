export * from './config-file';
export * from './files';
export * from './model-folder';
export * from './names';
export * from './safetensors';
export * from './versions';
export * from './weights';
