import { CompileError } from '@asa/core';
import {
  type Launch,
  packUniforms,
  pipelineKey,
  present,
  wgslOf,
} from './launch';
import { memoryOf } from './memory';
import { UniformArena, type UniformSlot } from './uniforms';

interface Pipeline {
  readonly id: number;
  readonly gpu: GPUComputePipeline;
}

const MOST_BIND_GROUPS = 16_384;

/** Compiled kernels, uniforms and bind groups, each made once. */
export class Pipelines {
  private readonly compiled = new Map<string, Pipeline>();
  private readonly uniforms: UniformArena;
  private readonly bindGroups = new Map<string, GPUBindGroup>();
  private nextId = 1;

  constructor(
    private readonly device: GPUDevice,
    private readonly report: (problem: Promise<Error | undefined>) => void,
  ) {
    this.uniforms = new UniformArena(device);
  }

  /** What a compute pass needs to dispatch a launch. */
  prepare(launch: Launch): {
    readonly pipeline: GPUComputePipeline;
    readonly bindGroup: GPUBindGroup;
  } {
    const pipeline = this.pipeline(launch);
    return {
      pipeline: pipeline.gpu,
      bindGroup: this.bindGroup(launch, pipeline),
    };
  }

  /** Before commands that were prepared are handed over. */
  upload(): void {
    this.uniforms.upload();
  }

  /** A buffer was destroyed: the bind groups go, the rest is kept. */
  forgetBindGroups(): void {
    this.bindGroups.clear();
  }

  destroy(): void {
    this.uniforms.destroy();
    this.bindGroups.clear();
    this.compiled.clear();
  }

  private pipeline(launch: Launch): Pipeline {
    const key = pipelineKey(launch);
    let pipeline = this.compiled.get(key);
    if (!pipeline) {
      pipeline = { id: this.nextId++, gpu: this.compile(launch) };
      this.compiled.set(key, pipeline);
    }
    return pipeline;
  }

  private compile(launch: Launch): GPUComputePipeline {
    const { device } = this;
    const code = wgslOf(launch);
    device.pushErrorScope('validation');
    const module = device.createShaderModule({ code, label: launch.kernel });
    const pipeline = device.createComputePipeline({
      layout: 'auto',
      compute: { module, entryPoint: 'main' },
      label: launch.kernel,
    });
    const scope = device.popErrorScope();
    const check = async () => {
      const error = await scope;
      if (!error) return undefined;
      const { messages } = await module.getCompilationInfo();
      const log = messages.map(
        ({ type, lineNum, message }) =>
          `${type} in line ${lineNum}: ${message}`,
      );
      return new CompileError(
        launch.kernel,
        log.join('\n') || error.message,
        code,
      );
    };
    this.report(check());
    return pipeline;
  }

  private bindGroup(launch: Launch, pipeline: Pipeline): GPUBindGroup {
    const uniforms = this.uniform(launch);
    let key = `${pipeline.id}:${uniforms?.id ?? 0}`;
    for (const name in launch.bindings) {
      const tensor = launch.bindings[name]?.tensor;
      if (!tensor) continue;
      const { buffer, boundBytes } = memoryOf(tensor.storage);
      key += `,${buffer.id}/${boundBytes}`;
    }
    const known = this.bindGroups.get(key);
    if (known) return known;
    const entries: GPUBindGroupEntry[] = present(launch.bindings).map(
      ([, { tensor }], binding) => {
        const { buffer, boundBytes } = memoryOf(tensor.storage);
        return { binding, resource: { buffer: buffer.gpu, size: boundBytes } };
      },
    );
    if (uniforms) {
      const { gpu: buffer, offset, size } = uniforms;
      entries.push({
        binding: entries.length,
        resource: { buffer, offset, size },
      });
    }
    if (this.bindGroups.size >= MOST_BIND_GROUPS) this.bindGroups.clear();
    const bindGroup = this.device.createBindGroup({
      layout: pipeline.gpu.getBindGroupLayout(0),
      entries,
    });
    this.bindGroups.set(key, bindGroup);
    return bindGroup;
  }

  private uniform(launch: Launch): UniformSlot | undefined {
    const words = packUniforms(launch);
    if (!words) return undefined;
    if (this.uniforms.isFull) {
      this.uniforms.renew();
      // They would keep the last buffer alive.
      this.bindGroups.clear();
    }
    return this.uniforms.slotOf(words);
  }
}
