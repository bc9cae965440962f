/// <reference types="@webgpu/types" />
import { UnsupportedError } from '@asa/core';

/**
 * What Dawn hides from web pages: f16 on NVIDIA's Vulkan driver, and subgroup
 * matrices.
 */
const dawnFeatures = ['allow_unsafe_apis', 'vulkan_enable_f16_on_nvidia'];
/** Kernels keep their own bounds, and checks about matrices cost half. */
const withoutChecks = 'disable_robustness';

// Dawn's instance must outlive every device: collected while one is in use,
// the process hangs or crashes. A module's variable is not enough.
const instances = Symbol.for('asa.webgpu.instances');
type Holder = { [instances]?: { checked?: GPU; unchecked?: GPU } };

/**
 * `navigator.gpu` where there is one, Dawn through the package `webgpu` in
 * Node.js: there, with checks of every access to a buffer or without.
 * @throws UnsupportedError when the package does not load.
 */
export async function loadGpu(boundsChecks = true): Promise<GPU> {
  const holder = globalThis as Holder;
  holder[instances] ??= {};
  const known = holder[instances];
  const name = boundsChecks ? 'checked' : 'unchecked';
  if (known[name]) return known[name];
  if (typeof navigator !== 'undefined' && navigator.gpu) return navigator.gpu;
  const { create, globals } = await loadDawn();
  Object.assign(globalThis, globals);
  const features = boundsChecks
    ? dawnFeatures
    : [...dawnFeatures, withoutChecks];
  const gpu = create([`enable-dawn-features=${features.join(',')}`]) as GPU;
  known[name] = gpu;
  return gpu;
}

/**
 * Puts what `loadGpu` finds where libraries look for it, in `navigator.gpu`:
 * Node.js has none.
 */
export async function offerGpu(): Promise<void> {
  const gpu = await loadGpu();
  const holder = globalThis as { navigator?: object };
  if (!holder.navigator) {
    Object.defineProperty(globalThis, 'navigator', {
      value: { gpu },
      configurable: true,
      writable: true,
    });
  } else if (!('gpu' in holder.navigator)) {
    Object.defineProperty(holder.navigator, 'gpu', {
      value: gpu,
      configurable: true,
    });
  }
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
