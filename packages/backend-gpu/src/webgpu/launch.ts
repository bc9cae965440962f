/// <reference types="@webgpu/types" />
import type { Tensor } from '@asa/core';

/** A tensor as a kernel sees it. */
export interface Binding {
  readonly tensor: Tensor;
  readonly access: 'read' | 'read_write';
  /** Other than the tensor's own: its bits, or vectors of four. */
  readonly as?: string;
}

export const input = (tensor: Tensor, as?: string): Binding => ({
  tensor,
  access: 'read',
  as,
});
export const output = (tensor: Tensor, as?: string): Binding => ({
  tensor,
  access: 'read_write',
  as,
});

/** A number that changes from call to call, without compiling again. */
export interface UniformValue {
  readonly type: 'u32' | 'i32' | 'f32';
  readonly value: number;
}
export const u32 = (value: number): UniformValue => ({ type: 'u32', value });
export const i32 = (value: number): UniformValue => ({ type: 'i32', value });
export const f32 = (value: number): UniformValue => ({ type: 'f32', value });

/** Workgroups on each axis. */
export type Grid = readonly [x: number, y?: number, z?: number];

/**
 * One dispatch. `source` gives functions and the body of `main`; bindings,
 * uniforms (`u.name`) and constants (`NAME`) are declared for it by name.
 */
export interface Launch {
  readonly kernel: string;
  /** Numbers and flags that the kernel is compiled for. */
  readonly constants: Readonly<Record<string, number>>;
  /** Tells apart what `constants` do not; part of the cache's key. */
  readonly variant?: string;
  readonly bindings: Readonly<Record<string, Binding | undefined>>;
  readonly uniforms?: Readonly<Record<string, UniformValue>>;
  readonly grid: Grid;
  readonly source: () => Source;
}

interface Source {
  /** Threads of a workgroup. */
  readonly threads: number;
  /** Lines that must come first: `enable`, `requires` and `diagnostic`. */
  readonly directives?: readonly string[];
  /** Further parameters of `main`, as `@builtin(subgroup_id) subgroup: u32`. */
  readonly parameters?: readonly string[];
  /** Functions, structures and workgroup variables. */
  readonly declarations?: string;
  /**
   * The body. It sees `tid` (thread in the workgroup), `group` (workgroup,
   * `vec3u`) and `groups` (their number, `vec3u`).
   */
  readonly body: string;
}

/** The bindings there are, in order. */
export function present(
  bindings: Launch['bindings'],
): readonly (readonly [string, Binding])[] {
  const there: (readonly [string, Binding])[] = [];
  for (const name in bindings) {
    const binding = bindings[name];
    if (binding) there.push([name, binding]);
  }
  return there;
}

/** What distinguishes one pipeline from another. */
export function pipelineKey(launch: Launch): string {
  const { kernel, variant = '', constants, bindings, uniforms } = launch;
  let key = `${kernel}|${variant}`;
  for (const name in constants) key += `|${name}=${constants[name]}`;
  for (const name in bindings) {
    const binding = bindings[name];
    if (!binding) continue;
    const { tensor, access, as } = binding;
    key += `|${name}:${as ?? tensor.dtype}:${access}`;
  }
  for (const name in uniforms) key += `|${name}`;
  return key;
}

/** The whole WGSL text of a launch. */
export function wgslOf(launch: Launch): string {
  const source = launch.source();
  const { threads, declarations = '', body } = source;
  const { directives = [], parameters = [] } = source;
  const bindings = present(launch.bindings);
  const uniforms = Object.entries(launch.uniforms ?? {});
  const halves = bindings.some(([, { tensor }]) => tensor.dtype === 'f16');
  const lines = [
    ...(halves ? ['enable f16;'] : []),
    ...directives,
    ...Object.entries(launch.constants).map(
      ([name, value]) => `const ${name} = ${value}u;`,
    ),
    ...bindings.flatMap(([name, { tensor, access, as }], index) => [
      // `t_y(value)` rounds to the type of y.
      `alias t_${name} = ${as ?? tensor.dtype};`,
      `@group(0) @binding(${index}) var<storage, ${access}> ${name}: array<t_${name}>;`,
    ]),
  ];
  if (uniforms.length > 0) {
    const fields = uniforms.map(([name, { type }]) => `${name}: ${type}`);
    lines.push(
      `struct Uniforms { ${fields.join(', ')} }`,
      `@group(0) @binding(${bindings.length}) var<uniform> u: Uniforms;`,
    );
  }
  // Named once, so that the automatic layout has every binding.
  const used = [
    ...bindings.map(([name]) => `_ = &${name};`),
    ...(uniforms.length > 0 ? ['_ = &u;'] : []),
  ];
  return `${lines.join('\n')}
${declarations}
@compute @workgroup_size(${threads})
fn main(
  @builtin(local_invocation_index) tid: u32,
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
${parameters.map((parameter) => `  ${parameter},\n`).join('')}) {
${used.join(' ')}
${body}
}
`;
}

/** The uniforms as the kernel reads them: 16 bytes at least. */
export function packUniforms(launch: Launch): Uint32Array | undefined {
  if (!launch.uniforms) return undefined;
  const values = Object.values(launch.uniforms);
  if (values.length === 0) return undefined;
  const words = new Uint32Array(Math.ceil(values.length / 4) * 4);
  const floats = new Float32Array(words.buffer);
  values.forEach(({ type, value }, index) => {
    if (type === 'f32') floats[index] = value;
    else words[index] = value;
  });
  return words;
}

/** WebGPU's limit on workgroups of one axis. */
const MOST_GROUPS = 65_535;

/**
 * A flat number of workgroups on two axes; a kernel takes
 * `group.x + group.y * groups.x` and returns where that is too large.
 */
export function flat(count: number): Grid {
  if (count <= MOST_GROUPS) return [count];
  const y = Math.ceil(count / MOST_GROUPS);
  return [Math.ceil(count / y), y];
}

/** Text repeated for 0 .. count - 1: loops whose registers must have names. */
export function unroll(count: number, text: (i: number) => string): string {
  return Array.from({ length: count }, (_, i) => text(i)).join('\n');
}
