import { openCpu } from '@asa/backend-cpu';
import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu';
import {
  type Backend,
  MemoryFolder,
  type Tensor,
  type TrainConfigInput,
  Trainer,
} from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  softwareGpu,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';
import { rmsRatio } from '../unit/engine/tiny-models';
import { bitsOf, documentsOf, newModel } from '../unit/train/models';

const STEPS = 20;
const config: TrainConfigInput = {
  seed: 11,
  steps: STEPS,
  context: 16,
  rows: 2,
  schedule: { kind: 'cosine', peak: 0.02, warmup: 2 },
};
const documents = documentsOf(19, 3, 8, 30, 5);

/**
 * AdamW divides by the gradient's own size, so a rounding error of a small
 * gradient moves its parameter by up to that error's share of a step.
 */
const allowed = { loss: 1e-5, parameters: 1e-4 };

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`training on WebGPU ${reason ?? ''}`, () => {
  let gpu: WebGpuBackend;
  let cpu: Backend;
  beforeAll(async () => {
    gpu = await openWebGpu({ gpu: softwareGpu(), poison: true });
    cpu = await openCpu({ poison: true });
  }, 60_000);
  afterAll(async () => {
    await gpu.destroy();
    await cpu.destroy();
  });

  const timeout = 600_000;

  test('20 steps give the losses and parameters of the oracle', {
    timeout,
  }, async () => {
    const run = async (backend: Backend) => {
      const trainer = new Trainer(await newModel(backend), documents, config);
      const losses = await stepsOf(trainer, STEPS);
      const parameters = await valuesOf(trainer.model.parameters);
      trainer.free();
      trainer.model.free();
      return { losses, parameters };
    };
    const [got, want] = [await run(gpu), await run(cpu)];
    for (const [i, loss] of want.losses.entries()) {
      const error = Math.abs(got.losses[i]! - loss) / loss;
      expect(error, `step ${i + 1}`).toBeLessThan(allowed.loss);
    }
    // The losses fall, so the steps did something.
    expect(want.losses.at(-1)).toBeLessThan(0.8 * want.losses[0]!);
    for (const [name, values] of want.parameters) {
      const error = rmsRatio(got.parameters.get(name)!, values);
      expect(error, name).toBeLessThan(allowed.parameters);
    }
    expect(gpu.memory().bytesInUse).toBe(0);
  });

  test('a run broken in the middle ends in the bits of a whole one', {
    timeout,
  }, async () => {
    const whole = new Trainer(await newModel(gpu), documents, config);
    const broken = new Trainer(await newModel(gpu), documents, config);
    const folder = new MemoryFolder();
    const first = await stepsOf(broken, 7);
    await broken.save(folder);
    const resumed = await Trainer.resume(folder, gpu, documents, config);
    const rest = await stepsOf(resumed, 6);
    expect(await stepsOf(whole, 13)).toEqual([...first, ...rest]);
    for (const part of ['masters', 'm', 'v'] as const) {
      expect(await bitsOf(resumed.optimizer[part])).toEqual(
        await bitsOf(whole.optimizer[part]),
      );
    }
    for (const trainer of [whole, broken, resumed]) {
      trainer.free();
      trainer.model.free();
    }
    expect(gpu.memory().bytesInUse).toBe(0);
  });
});

async function stepsOf(trainer: Trainer, count: number): Promise<number[]> {
  const losses: number[] = [];
  for (let i = 0; i < count; i++) losses.push((await trainer.step()).loss);
  return losses;
}

async function valuesOf(
  tensors: ReadonlyMap<string, Tensor>,
): Promise<Map<string, Float32Array>> {
  const read = new Map<string, Float32Array>();
  for (const [name, { backend, storage }] of tensors) {
    read.set(name, Float32Array.from(await backend.read(storage)));
  }
  return read;
}
