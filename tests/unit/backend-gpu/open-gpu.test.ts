import { openCpu } from '@asa/backend-cpu';
import { gpuDrivers, openGpu } from '@asa/backend-gpu';
import { listAdapters } from '@asa/backend-gpu/webgpu';
import { ArgumentError, UnsupportedError } from '@asa/core';
import { withKernels } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { checkKnownAnswer } from '../../../packages/backend-gpu/src/known-answer';
import { softwareGpu, whyNoSoftwareGpu } from './software-gpu';

const reason = whyNoSoftwareGpu();

/** Where the driver keeps the loader's objects. */
const holder = globalThis as Record<symbol, { checked?: GPU } | undefined>;
const instances = Symbol.for('asa.webgpu.instances');
const before = holder[instances];
afterAll(() => {
  holder[instances] = before;
});

/** The adapters of a GPU under another name. */
function renamed(gpu: GPU, vendor: string): GPU {
  return {
    wgslLanguageFeatures: gpu.wgslLanguageFeatures,
    requestAdapter: async (options: GPURequestAdapterOptions) => {
      const adapter = await gpu.requestAdapter(options);
      return (
        adapter && {
          info: { vendor },
          features: adapter.features,
          limits: adapter.limits,
          requestDevice: (descriptor: GPUDeviceDescriptor) =>
            adapter.requestDevice(descriptor),
        }
      );
    },
  } as unknown as GPU;
}

describe.skipIf(reason)(`openGpu ${reason ?? ''}`, () => {
  let gpu: GPU;
  beforeAll(async () => {
    // With the system's own loader, its first use leaves it in its place.
    if (!softwareGpu()) await listAdapters();
    gpu = softwareGpu() ?? (holder[instances]?.checked as GPU);
  });

  test('passes over what computes on the CPU, and says so', async () => {
    holder[instances] = { checked: renamed(gpu, 'llvmpipe') };
    const onPassedOver = vi.fn();
    const opening = openGpu({ onPassedOver });
    await expect(opening).rejects.toThrow(UnsupportedError);
    await expect(opening).rejects.toThrow(
      'open: backend gpu cannot run it, webgpu: no GPU, passed over llvmpipe, software',
    );
    expect(onPassedOver.mock.calls).toEqual([
      ['webgpu', 'no GPU, passed over llvmpipe, software'],
    ]);
  });

  test('takes a hardware adapter', async () => {
    holder[instances] = { checked: renamed(gpu, 'ACME') };
    const onPassedOver = vi.fn();
    const backend = await openGpu({ onPassedOver, limitBytes: 2 ** 20 });
    expect(backend.name).toBe('webgpu');
    expect(backend.description).toBe('ACME');
    expect(onPassedOver).not.toHaveBeenCalled();
    await backend.destroy();
  });

  test('lists each adapter once, with what kernels ask for', async () => {
    const [adapter, ...others] = await listAdapters({ gpu });
    expect(others).toEqual([]);
    expect(adapter).toMatchObject({ isSoftware: true, matrixPath: 'plain' });
    expect(adapter?.noMatrixUnits).toMatch(/lacks/);
    expect(adapter?.limits.maxStorageBufferBindingSize).toBeGreaterThan(0);
  });

  test("a limit that is no number is the caller's error", () =>
    expect(openGpu({ limitBytes: Number.NaN })).rejects.toThrow(ArgumentError));
});

test('openGpu tries what it is asked for', async () => {
  expect(gpuDrivers[0]).toBe('webgpu');
  await expect(openGpu({ drivers: [] })).rejects.toThrow(
    /no driver was asked for/,
  );
  const unknown = ['abacus'] as unknown as typeof gpuDrivers;
  await expect(openGpu({ drivers: unknown })).rejects.toThrow(
    'openGpu: a driver must be one of webgpu, got abacus',
  );
});

describe('the known answer', () => {
  test('is what a right backend gives', async () => {
    const cpu = await openCpu();
    await checkKnownAnswer(cpu);
    expect(cpu.memory().bytesInUse).toBe(0);
    await cpu.destroy();
  });

  test('finds a device that multiplies wrong', async () => {
    const cpu = await openCpu();
    const skewed = withKernels(cpu, {
      matmul: (own) => (inputs, outputs, attributes) => {
        own(inputs, outputs, attributes);
        const y = outputs.y;
        if (y) cpu.write(y.storage, Float32Array.of(-1), y.size - 1);
      },
    });
    await expect(checkKnownAnswer(skewed)).rejects.toThrow(
      /a product of whole numbers is wrong, -1 at 56 for/,
    );
    await cpu.destroy();
  });
});
