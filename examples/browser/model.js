import { openWebGpu } from '@asa/backend-gpu/webgpu';
import { Engine, MemoryFolder } from '@asa/core';

const required = ['config.json', 'model.safetensors'];
const optional = ['tokenizer.json', 'tokenizer_config.json'];

/** A model folder behind a URL that ends in `/`, on this browser's GPU. */
export async function openModel(url) {
  const folder = new MemoryFolder(url);
  for (const name of [...required, ...optional]) {
    const response = await fetch(new URL(name, new URL(url, location.href)));
    if (response.ok) {
      folder.set(name, new Uint8Array(await response.arrayBuffer()));
    } else if (required.includes(name)) {
      throw new Error(`${url}${name}: ${response.status}`);
    }
  }
  const backend = await openWebGpu();
  return { backend, engine: await Engine.open(folder, backend) };
}
