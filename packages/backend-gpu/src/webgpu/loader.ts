/// <reference types="@webgpu/types" />
import { UnsupportedError } from '@asa/core';

/**
 * What Dawn hides from web pages: f16 on NVIDIA's Vulkan driver, and subgroup
 * matrices.
 */
const dawnFeatures = ['allow_unsafe_apis', 'vulkan_enable_f16_on_nvidia'];

// Dawn's instance must outlive every device: collected while one is in use,
// the process hangs or crashes. A module's variable is not enough.
const instance = Symbol.for('asa.webgpu.instance');
type Holder = { [instance]?: GPU };

/**
 * `navigator.gpu` where there is one, Dawn through the package `webgpu` in
 * Node.js.
 * @throws UnsupportedError when the package does not load.
 */
export async function loadGpu(): Promise<GPU> {
  const holder = globalThis as Holder;
  if (holder[instance]) return holder[instance];
  if (typeof navigator !== 'undefined' && navigator.gpu) return navigator.gpu;
  const { create, globals } = await loadDawn();
  Object.assign(globalThis, globals);
  holder[instance] = create([
    `enable-dawn-features=${dawnFeatures.join(',')}`,
  ]) as GPU;
  return holder[instance];
}

async function loadDawn() {
  try {
    return await import('webgpu');
  } catch (error) {
    throw new UnsupportedError(
      'open',
      'webgpu',
      `there is no navigator.gpu, and the package webgpu does not load: ${error instanceof Error ? error.message : error}`,
    );
  }
}
