"""Hold every text of the page, in English and in Chinese."""

import streamlit as st

LANGUAGES = {'en': 'English', 'zh': '中文'}

# key -> the text in each of LANGUAGES
TEXTS = {
    'title': ('Step through a diffusion', '逐步走过扩散过程'),
    'caption': (
        '{path}: {size} parameters, T = {T} steps of diffusion, trained for {step} steps',
        '{path}：{size} 个参数，扩散步数 T = {T}，训练了 {step} 步',
    ),
    'view': ('View', '视图'),
    'view_walk': ('Walk', '行走'),
    'view_compare': ('Compare', '比较'),
    'view_figures': ('Figures', '图'),
    # the sidebar
    'checkpoint': ('Checkpoint', '检查点'),
    'weights': ('Weights', '权重'),
    'ema': ('EMA', 'EMA'),
    'raw': ('raw', '原始'),
    'sampler': ('Sampler', '采样器'),
    'own_sampler': ('a mixture of your own', '自定义'),
    'sample_steps': ('Sampling steps', '采样步数'),
    'in_steps': ('{steps} steps', '{steps} 步'),
    'order': ('Order', '阶数'),
    'order_help': (
        'How many predictions of x_0 a step is made of. 3 is for eta = 0.',
        '一步由多少个对 x_0 的预测组成。3 阶只用于 eta = 0。',
    ),
    'corrector': ('Corrector', '校正器'),
    'corrector_help': (
        'Each prediction also corrects the step before it (UniPC). It is for eta = 0.',
        '每个预测还校正它的前一步（UniPC）。只用于 eta = 0。',
    ),
    'eta_help': (
        '1: every step adds new noise, as in DDPM. 0: no step does, as in DDIM.',
        '1：每一步都加入新噪声，即 DDPM。0：都不加，即 DDIM。',
    ),
    'spacing': ('Spacing', '时间步间隔'),
    'spacing_help': (
        'Which of the T timesteps the sampling steps take.',
        '采样步取 T 个时间步中的哪一些。',
    ),
    'eps_scale_help': (
        'Divides the predicted noise; 1.005 or so can help few steps.',
        '预测的噪声除以此数；步数少时，1.005 左右可能有帮助。',
    ),
    'clip': ('Clip outputs', '截断输出'),
    'clip_help': ('Clips each predicted x_0 to [-1, 1].', '把每个预测的 x_0 截断到 [-1, 1]。'),
    'label': ('Label', '标签'),
    'all_labels': ('all in turn', '依次全部'),
    'guidance': ('Guidance', '引导强度'),
    'guidance_help': (
        '0: the label is left out. 1: plain conditional sampling. More: the label counts for more.',
        '0：不用标签。1：普通的条件采样。更大：标签的作用更强。',
    ),
    'images': ('Images', '图像数'),
    'points': ('Points', '点数'),
    'seed': ('Seed', '随机种子'),
    'seed_help': ('The same seed gives the same noise.', '种子相同，噪声就相同。'),
    'start': ('Start from', '起点'),
    'start_noise': ('noise', '噪声'),
    'start_image': ('training images', '训练图像'),
    'start_points': ('training points', '训练数据点'),
    'start_upload': ('an image of your own', '自己的图像'),
    'item_class': ('Class', '类别'),
    'any': ('any', '任意'),
    'item': ('From number', '从第几个开始'),
    'file': ('Image', '图像文件'),
    'mask': ('Draw anew', '重新绘制'),
    'mask_': ('nothing', '无'),
    'mask_half': ('the right half', '右半边'),
    'mask_box': ('a box', '方框'),
    'mask_lines': ('every second row', '隔行'),
    'mask_random': ('pixels at random', '随机像素'),
    'mask_help': (
        'What of the images is drawn anew, from noise; the other pixels stay as they are (--edit=inpaint).',
        '图像的哪一部分从噪声重新绘制；其余像素保持不变（--edit=inpaint）。',
    ),
    'share': ('Share drawn anew', '重新绘制的比例'),
    'columns': ('Columns of the box', '方框的列'),
    'rows': ('Rows of the box', '方框的行'),
    'resample_help': (
        'Times that the walk takes each `jump` steps; 1: it never goes back up.',
        '每 `jump` 步走多少遍；1：从不回退。',
    ),
    'jump_help': ('Number of steps that it goes back up by.', '每次回退的步数。'),
    'known': ('what is known; grey is drawn anew', '已知的部分；灰色处重新绘制'),
    'long_walk': (
        'This walk has {states} states, of which memory keeps those of {most} images: choose so many, or fewer steps',
        '这段行走有 {states} 个状态，内存只能保存 {most} 幅图像的：请减少图像数或步数',
    ),
    'choose_file': (
        'Choose an image in the sidebar. It is cropped and resized to what the network sees.',
        '请在侧栏选择一张图像。它会被裁剪、缩放成网络所见的大小。',
    ),
    # time
    'direction': ('Direction', '方向'),
    'denoise': ('Denoise', '去噪'),
    'diffuse': ('Diffuse', '加噪'),
    'step_of': ('Step, of {end}', '第几步（共 {end} 步）'),
    'play': ('Play', '播放'),
    'position': ('Position in the walk', '行走中的位置'),
    'n': ('Steps a click', '每次点击的步数'),
    'n_help': ('How many steps + and - and each picture of a play take.', '“+”“-”以及播放的每一帧走多少步。'),
    'speed': ('Pictures a second', '每秒画面数'),
    'show_x0': ('Show predicted x_0', '显示预测的 x_0'),
    'replaying': ('Walking to the state of the link', '正在走到链接所指的状态'),
    'status': (
        '**t = {t}**: {t} of {T} noisings are in this state, {k} steps from the start.',
        '**t = {t}**：此状态含 {T} 次加噪中的 {t} 次，离起点 {k} 步。',
    ),
    'starts_below': (
        'The sampler begins at {t}, not at {T}: these are the {S} timesteps that its spacing takes, marked below.',
        '采样器从 {t} 而不是 {T} 开始：它的间隔取了下面标出的 {S} 个时间步。',
    ),
    'noisings': ('t, noisings', 't，加噪次数'),
    'x_t': ('$x_{{{t}}}$, the state', '$x_{{{t}}}$，当前状态'),
    'x0_hat': (
        r'$\hat x_0(x_{{{t}}})$, the result that the network predicts from it',
        r'$\hat x_0(x_{{{t}}})$，网络由它预测的结果',
    ),
    'x0_projected': (
        r'$\hat x_0(x_{{{t}}})$, the result predicted from $x_{{{t}}}$, with the known pixels put in',
        r'$\hat x_0(x_{{{t}}})$，由 $x_{{{t}}}$ 预测的结果，并填入已知像素',
    ),
    'x_0': ('$x_0$, the result', '$x_0$，结果'),
    # a step
    'show_step': ('What happens in this step', '这一步里发生了什么'),
    'no_step': (
        'This is x_0: no step of denoising is left. Go back, or diffuse it.',
        '这就是 x_0：没有去噪步了。可以后退，或者给它加噪。',
    ),
    'completed': (
        'This is x_0, the completed image: no step is left. Go back to see how it came about.',
        '这就是 x_0，补全后的图像：没有去噪步了。可以后退，看它如何形成。',
    ),
    'no_noise': ('This step adds no noise.', '这一步不加噪声。'),
    'back_up': (
        'Back up from {t} to {s} noisings by the forward process q: what was drawn anew is then denoised again, and '
        'comes to fit what is known.',
        '用前向过程 q 从 {t} 次加噪回退到 {s} 次：新绘制的部分再次去噪，从而与已知部分协调。',
    ),
    'projection': (
        r"The step is made of the prediction with the known pixels put in: $\hat x_0'$ is the network's, $y$ the "
        r'image, and $m$ is 1 where a pixel is known.',
        r"这一步用的是填入已知像素后的预测：$\hat x_0'$ 是网络的预测，$y$ 是图像，像素已知处 $m$ 为 1。",
    ),
    'image': ('Image', '图像'),
    'point': ('Point', '点'),
    'channel': ('Channel', '通道'),
    'row': ('Row', '行'),
    'column': ('Column', '列'),
    'coordinate': ('Coordinate', '坐标'),
    'weight': ('weight', '权重'),
    'value': ('value at the mark', '标记处的值'),
    'product': ('product', '乘积'),
    'sum': ('sum', '和'),
    'of_x_t': ('$x_{{{t}}}$', '$x_{{{t}}}$'),
    'of_eps': (r'predicted noise $\hat\epsilon$', r'预测的噪声 $\hat\epsilon$'),
    'of_x0_hat': (r'$\hat x_0(x_{{{t}}})$', r'$\hat x_0(x_{{{t}}})$'),
    'of_raw': (r"$\hat x_0'$, the network's", r"$\hat x_0'$，网络的预测"),
    'of_before': (r'before: $\hat x_0(x_{{{t}}})$', r'此前：$\hat x_0(x_{{{t}}})$'),
    'of_mean': (r'mean of $x_{{{s}}}$', r'$x_{{{s}}}$ 的均值'),
    'of_added': (r'noise added $\sigma z$', r'加入的噪声 $\sigma z$'),
    'of_x_s': ('$x_{{{s}}}$', '$x_{{{s}}}$'),
    'curves': (
        r'$\bar\alpha_t$ (blue), the share of the image in the variance; $\sigma$ (green), the noise that the '
        r'sampler adds; and the signal-to-noise ratio $\bar\alpha_t / (1 - \bar\alpha_t)$ (orange).',
        r'$\bar\alpha_t$（蓝）：图像在方差中所占的份额；$\sigma$（绿）：采样器加入的噪声；'
        r'信噪比 $\bar\alpha_t / (1 - \bar\alpha_t)$（橙）。',
    ),
    # saving
    'png': ('Save the state as PNG', '把状态存为 PNG'),
    'gif': ('Save the walk as GIF', '把行走存为 GIF'),
    'sources': ('Save the images to complete', '保存待补全的图像'),
    'save_sources': (
        'The command reads {name}, which the button above saves: put it where you run the command.',
        '命令读取 {name}：请用上面的按钮保存，并放在运行命令的目录。',
    ),
    'same_again': ('The same again: command line and link', '重现：命令行与链接'),
    'no_upload_in_link': ('The link does not hold the image of your own.', '链接里不含你自己的图像。'),
    # comparing
    'against': ('B differs from A in', 'B 与 A 的差别'),
    'against_solver': ('the sampler', '采样器'),
    'against_weights': ('the weights: EMA or raw', '权重：EMA 或原始'),
    'against_guidance': ('the guidance', '引导强度'),
    'against_ckpt': ('the checkpoint', '检查点'),
    'draw_both': ('Draw both from one noise', '用同一噪声画两者'),
    'took': ('{seconds} s for {steps} steps', '{steps} 步用了 {seconds} 秒'),
    'differ': (
        'Root mean square difference of A and B, in units of [-1, 1]: {rms}',
        'A 与 B 的均方根差（以 [-1, 1] 为单位）：{rms}',
    ),
    'other_shape': ('A and B draw images of different shapes', 'A 与 B 画的图像形状不同'),
    # figures
    'figure': ('Figure', '图'),
    'figure_progressive': ('progressive: from noise to image', 'progressive：从噪声到图像'),
    'figure_forward': ('forward: from image to noise', 'forward：从图像到噪声'),
    'figure_guidance': ('guidance: each label at several weights', 'guidance：每个标签，几种强度'),
    'figure_reconstruct': ('reconstruct: images from their codes', 'reconstruct：由编码重建图像'),
    'figure_interpolate': ('interpolate: mixtures of two images', 'interpolate：两幅图像的混合'),
    'figure_nearest': ('nearest: the training images nearest to samples', 'nearest：与样本最近的训练图像'),
    'figure_distances': ('distances: are the samples copies?', 'distances：样本是否是复制品'),
    'between': ('Mix', '混合'),
    'between_states': ('noised images', '加噪后的图像'),
    'between_codes': ('codes', '编码'),
    'figure_t': ('Noisings before the mixing', '混合之前的加噪次数'),
    'feature_net': ('Features', '特征'),
    'draw': ('Draw', '绘制'),
    'drawing': ('Drawing, {seconds} s; a change of any setting stops it', '绘制中，{seconds} 秒；改动任何设置会中止'),
    'no_figures': (
        'Figures are of images, and this is a checkpoint of points.',
        '图只用于图像，而这是数据点的检查点。',
    ),
    'fewer': ('choose fewer images', '请减少图像数'),
    # what went wrong
    'unknown_arguments': (
        'Unknown arguments {words}: the page takes --ckpt PATH and --logs FOLDER',
        '未知参数 {words}：此页只接受 --ckpt 路径 和 --logs 文件夹',
    ),
    'no_checkpoint': (
        'There is no checkpoint under {folder}/: train one, as `make demo` does, or name one by --ckpt',
        '{folder}/ 下没有检查点：请先训练（如 `make demo`），或用 --ckpt 指定',
    ),
    'missing': (
        '{path} is missing: choose another checkpoint, or train it again and reload the page',
        '{path} 不存在：请选择别的检查点，或重新训练后刷新页面',
    ),
    'unusable': ('This checkpoint cannot be used: {why}', '此检查点无法使用：{why}'),
    'does_not_fit': ('These settings do not go together: {why}', '这些设置不能同时使用：{why}'),
    'no_start': ('There is nothing to start from: {why}', '没有可用的起点：{why}'),
    'cannot_draw': ('The figure cannot be drawn: {why}', '无法绘制此图：{why}'),
    'bad_link': ('The link is not followed in all: {why}', '链接未能全部遵循：{why}'),
    'link_checkpoint': (
        'The link is of a checkpoint {name} that is not here: what follows is another one',
        '链接里的检查点 {name} 不在这里：下面是另一个检查点',
    ),
    'link_start': ('start={start} is neither noise nor image', 'start={start} 既不是 noise 也不是 image'),
    'link_range': ('{name} must be {least} to {most} here', '此处 {name} 须为 {least} 到 {most}'),
    'one_way': ('walk={path} goes up, and completing images goes down only', 'walk={path} 含加噪，而补全图像只去噪'),
    'bad_path': ('walk={path} is no path such as denoise20.diffuse5', 'walk={path} 不是 denoise20.diffuse5 这样的路径'),
}


class Stop(Exception):
    """The page cannot go on, and shows the message in place of what would follow: (message, kind of box).

    st.stop() would not do: after it, Streamlit and the browser disagree on the values of widgets not shown.
    """

    def __init__(self, message, show='error'):
        super().__init__(message)
        self.show = show


def one_line(error):
    """Return the message of an error on one line."""
    return ' '.join(str(error).split())


def say(key, *, otherwise=None, **values):
    """Return a text in the language of the session, with the values put in; `otherwise` if there is no such text."""
    if key not in TEXTS and otherwise is not None:
        return otherwise
    language = list(LANGUAGES).index(st.session_state.get('lang', 'en'))
    return TEXTS[key][language].format(**values)
