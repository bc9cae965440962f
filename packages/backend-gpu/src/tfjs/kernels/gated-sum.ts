import * as tf from '@tensorflow/tfjs-core';
import { type Bodies, sumRows } from './body';

interface Operands {
  readonly gates: tf.Tensor;
  readonly bias?: tf.Tensor;
  readonly compressed: tf.Tensor;
  readonly selected: tf.Tensor;
  readonly window?: tf.Tensor;
}

export const gatedSumBodies: Bodies<'gatedSum' | 'gatedSumBackward'> = {
  /** y = sum over branches of sigmoid(gates + bias) o_branch */
  gatedSum(inputs) {
    const weights = weightsOf(inputs);
    const terms = branchesOf(inputs).map((o, i) =>
      tf.mul(weights[i] as tf.Tensor, o),
    );
    return { y: terms.reduce((a, b) => tf.add(a, b)) };
  },

  /** do = w dy,  dgates = w (1 - w) (dy . o),  delta = do . o */
  gatedSumBackward({ dY, ...inputs }) {
    const weights = weightsOf(inputs);
    const [dCompressed, dSelected, dWindow] = weights.map((w) => tf.mul(w, dY));
    const deltas = branchesOf(inputs).map((o, i) =>
      tf.mul(weights[i] as tf.Tensor, tf.sum(tf.mul(dY, o), -1, true)),
    );
    const slopes = deltas.map((delta, i) =>
      tf.mul(delta, tf.sub(1, weights[i] as tf.Tensor)),
    );
    const [deltaCompressed, deltaSelected, deltaWindow] = deltas.map((delta) =>
      tf.squeeze(delta, [-1]),
    );
    const dGates = tf.concat(slopes, -1);
    const dBias = inputs.bias && sumRows(dGates);
    return {
      ...{ dGates, dBias, dCompressed, dSelected, dWindow },
      ...{ deltaCompressed, deltaSelected, deltaWindow },
    };
  },
};

/** sigmoid(gates + bias), `[N, H, 1]` for each branch */
function weightsOf({ gates, bias, window }: Operands): tf.Tensor[] {
  const logits = bias ? tf.add(gates, bias) : gates;
  return tf.split(tf.sigmoid(logits), window ? 3 : 2, 2);
}

function branchesOf({ compressed, selected, window }: Operands): tf.Tensor[] {
  return window ? [compressed, selected, window] : [compressed, selected];
}
